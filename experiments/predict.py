"""Classify images with a trained network."""

from jaxcnn.cli.main import run_program

if __name__ == "__main__":
    run_program("predict")
