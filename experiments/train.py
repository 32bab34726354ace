"""Train on any of the data sets."""

from jaxcnn.cli.main import run_program

if __name__ == "__main__":
    run_program("train")
