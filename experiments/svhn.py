"""Train on SVHN with the original's settings."""

from jaxcnn.cli.main import run_program

if __name__ == "__main__":
    run_program("svhn")
