"""Weight files, checkpoints, and the start of a transfer."""
