"""The figures of README's table. `make bench` prints them and writes benchmarks/results.json."""
