"""Train on CIFAR-10 with the original's settings."""

from experiments.cli import baseline, train_main

if __name__ == "__main__":
    train_main(baseline("cifar10"), "Train on CIFAR-10 with the original's settings.")
