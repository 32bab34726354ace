"""The programs: flags in, runs out."""
