"""What becomes of a finished change: pushed, proposed, followed until it is merged; and who is told."""
