"""Train on SVHN with the original's settings."""

from experiments.cli import baseline, train_main

if __name__ == "__main__":
    train_main(baseline("svhn"), "Train on SVHN with the original's settings.")
