"""Long checks that are run by hand: crashes, odd input, PyTorch beside JAX, what a checkpoint costs."""
