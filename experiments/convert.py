"""Convert weights between PyTorch's model.pth, safetensors and Orbax checkpoints."""

from jaxcnn.cli.main import run_program

if __name__ == "__main__":
    run_program("convert")
