"""What `pilot serve` answers over HTTP."""
