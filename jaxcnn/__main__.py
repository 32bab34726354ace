"""`python -m jaxcnn`, which is the console script `jaxcnn`."""

from jaxcnn.cli.main import console

if __name__ == "__main__":
    console()
