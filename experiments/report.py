"""Draw the figures, tables and page of finished runs again, without training; compare runs."""

from jaxcnn.cli.main import run_program

if __name__ == "__main__":
    run_program("report")
