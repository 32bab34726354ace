"""Compare settings, masks or depths over seeds."""

from jaxcnn.cli.main import run_program

if __name__ == "__main__":
    run_program("study")
