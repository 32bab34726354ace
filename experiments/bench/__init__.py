"""The benchmark: this project and an equivalent PyTorch program, timed in turn on the same machine."""
