"""What pilot tells those who run it: logs now."""
