"""Publish a finished run's network as a folder."""

from jaxcnn.cli.main import run_program

if __name__ == "__main__":
    run_program("publish")
