"""What the words mean: plain values and functions, no I/O, `now` is always an argument."""
