"""Images: where they are, how they are read, split, cached and augmented."""
