"""Running an experiment: training, the files in the run's folder, and what is printed. For programs and notebooks."""
