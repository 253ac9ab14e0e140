"""The benchmarks and the sample: their names, how they get here, how they are made."""
