"""Train the three baselines one after the other, and compare them."""

from jaxcnn.cli.main import run_program

if __name__ == "__main__":
    run_program("baselines")
