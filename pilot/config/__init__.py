"""pilot.yaml: found, read, checked. `locate` for quick commands, `load` for all the rest."""
