"""The network's layers in the form that is fast on a CPU, each beside XLA's own for accelerators."""
