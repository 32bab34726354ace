"""Long checks, run by hand: crashes, odd input, agreement with PyTorch, the cost of a checkpoint."""
