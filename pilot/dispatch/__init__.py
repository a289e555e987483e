"""Who runs when: one worker per project, turns between them, leases, recovery, shutdown."""
