"""The commands: they parse, call what does the work, and print. Nothing else prints."""
