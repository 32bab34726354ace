"""What a run does and leaves in its folder: what the programs do, for notebooks too."""
