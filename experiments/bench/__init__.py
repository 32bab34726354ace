"""The benchmark: this project against an equivalent PyTorch program, in turn, on the same machine."""
