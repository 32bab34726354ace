"""A new user's path: images in class folders, a transfer to them, predictions of new ones; each one command."""

import csv
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

ROOT = Path(__file__).parent.parent
SHAPES = ("circle", "square", "triangle")


def draw(shape: str, random: np.random.Generator) -> Image.Image:
    """A shape of any colour, size and place on another colour."""
    width, height = random.integers(60, 120, 2)
    image = Image.new("RGB", (int(width), int(height)), tuple(map(int, random.integers(0, 100, 3))))
    radius = random.uniform(0.25, 0.45) * min(width, height)
    x, y = random.uniform(radius, width - radius), random.uniform(radius, height - radius)
    colour = tuple(map(int, random.integers(150, 256, 3)))
    pencil = ImageDraw.Draw(image)
    if shape == "circle":
        pencil.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    elif shape == "square":
        pencil.rectangle((x - radius, y - radius, x + radius, y + radius), fill=colour)
    else:
        pencil.polygon([(x, y - radius), (x + radius, y + radius), (x - radius, y + radius)], fill=colour)
    return image


def draw_folders(folder: Path, count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    for shape in SHAPES:
        (folder / shape).mkdir(parents=True)
        for number in range(count):
            draw(shape, random).save(folder / shape / f"{number}.{('png', 'jpg')[number % 2]}")


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_from_a_folder_of_images_to_predictions_in_two_minutes(tmp_path: Path) -> None:
    draw_folders(tmp_path / "shapes", 200, seed=0)
    draw_folders(tmp_path / "new", 20, seed=1)
    source = ROOT / "tests/reference/small/model.pth"
    train = f"transfer --source {source} --data.name folder --data.dir {tmp_path}/shapes --runs-dir {tmp_path}/runs"
    predict = f"predict {tmp_path}/new --model {tmp_path}/runs/shapes --csv {tmp_path}/new.csv"
    began = time.monotonic()
    for words in (f"{train} --name shapes --data.augment none --train.batch-size 32 --train.epochs 10", predict):
        command = [sys.executable, "-m", "jaxcnn", *words.split()]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    seconds = time.monotonic() - began
    assert "of 60 images whose folders name their class" in done.stdout
    with (tmp_path / "new.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(row["prediction"] == row["label"] for row in rows) > 45  # chance is 20
    assert seconds < 120
