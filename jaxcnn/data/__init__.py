"""Images: finding, reading, splitting, caching and augmenting them."""
