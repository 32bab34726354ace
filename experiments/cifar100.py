"""Train on CIFAR-100 with the original's settings."""

from experiments.cli import baseline, train_main

if __name__ == "__main__":
    train_main(baseline("cifar100"), "Train on CIFAR-100 with the original's settings.")
