"""Pretrain, transfer and compare on images that need no download."""

from jaxcnn.cli.main import run_program

if __name__ == "__main__":
    run_program("quickstart")
