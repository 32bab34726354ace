"""Train on CIFAR-100 with the original's settings."""

from jaxcnn.cli.main import run_program

if __name__ == "__main__":
    run_program("cifar100")
