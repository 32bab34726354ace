"""Weights in files and checkpoints, and as the start of a transfer."""
