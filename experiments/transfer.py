"""Transfer saved weights to another data set."""

from jaxcnn.cli.main import run_program

if __name__ == "__main__":
    run_program("transfer")
