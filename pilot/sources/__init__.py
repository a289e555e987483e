"""Where tasks come from: each a `domain.outside.Source`."""
