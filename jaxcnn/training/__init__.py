"""Training on arrays in memory: a step, an epoch, a run. No files."""
