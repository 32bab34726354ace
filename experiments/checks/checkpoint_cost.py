"""Measure the cost of a checkpoint per epoch: epochs with and without one, in turn, in one process.

    python -m experiments.checks.checkpoint_cost --data.name digits --train.epochs 5
    python -m experiments.checks.checkpoint_cost --data.name cifar10 --data.dir DIR --train.epochs 5

Flags are those of `experiments.train`; `--train.epochs` is the number of epochs of each kind. The measured delay is
that of the first images of the next epoch. So it includes copying, writing, and their after-effects. Whole epochs are
not compared, because on a large data set they vary by more than a checkpoint takes.
"""

import math
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import jax

from jaxcnn.cli.flags import parse
from jaxcnn.cli.main import main
from jaxcnn.cli.train import DEFAULT
from jaxcnn.data.sets import load_dataset
from jaxcnn.model import init_variables
from jaxcnn.runs.device import select_device
from jaxcnn.training.loop import fit
from jaxcnn.training.records import EpochRecord, Metrics
from jaxcnn.training.step import init_state
from jaxcnn.weights.checkpoint import open_checkpoints
from jaxcnn.weights.files import write_state_dict

FIRST = 5_000  # images of the next epoch: seconds later, when the disk has been idle for long


def measure() -> None:
    config, *_ = parse(DEFAULT, "Measure what checkpoints cost.")
    select_device(config.device)
    rounds = config.train.epochs
    # Two epochs to warm up, with a checkpoint between them. Then every second epoch follows a checkpoint.
    train = replace(config.train, epochs=2 * rounds + 2, early_stopping_patience=None, early_stopping_target=None)
    config = replace(config, train=train)
    model = config.model
    dataset = load_dataset(config.data, input_size=model.input_size, in_channels=model.in_channels, seed=config.seed)
    config = replace(config, model=replace(model, num_classes=dataset.num_classes))
    variables = init_variables(config.model, jax.random.key(config.seed))
    state = init_state(variables, config.model, config.optim, seed=config.seed)
    images = len(dataset.train.labels)
    reached: list[float] = []

    def on_step(seen: int, _: Metrics) -> None:
        if seen >= min(FIRST, images) and len(reached) < len(records) + 1:
            reached.append(time.perf_counter())

    ends: list[float] = []
    held: list[float] = []
    records: list[EpochRecord] = []
    with tempfile.TemporaryDirectory() as folder, open_checkpoints(Path(folder)) as checkpoints:
        for trained, record in fit(state, config, dataset, on_step=on_step):
            records.append(record)
            ends.append(time.perf_counter())
            if len(records) % 2:
                checkpoints.save(trained, records)
                held.append(time.perf_counter() - ends[-1])
    # From the end of an epoch to the next one's first images, and to its end.
    first = [end - start for start, end in zip(ends[:-1], reached[1:], strict=True)][1:]
    whole = [end - start for start, end in pairwise(ends)][1:]
    differences = [with_ - without for without, with_ in zip(first[::2], first[1::2], strict=True)]
    plain = statistics.mean(whole[::2])
    cost, error = statistics.mean(differences), statistics.stdev(differences) / math.sqrt(rounds)
    with tempfile.TemporaryDirectory() as folder:
        best = {"params": trained.params, "batch_stats": trained.batch_stats}
        for _ in range(2):  # the first one imports torch, once in a run
            start = time.perf_counter()
            for name in ("model.pth", "model.safetensors"):
                write_state_dict(Path(folder) / name, best, config.model)
            weights = time.perf_counter() - start
    print(
        f"{dataset.name}, {images:,} training images, {plain:.3f} s an epoch without a checkpoint; with one it is "
        f"{cost * 1000:.0f} ± {error * 1000:.0f} ms behind after {min(FIRST, images):,} images, "
        f"{100 * cost / plain:.2f} ± {100 * error / plain:.2f} % of an epoch (n = {rounds} of each kind, standard "
        f"error of the mean difference); {1000 * statistics.mean(held[1:]):.0f} ms of this pass before the next "
        f"epoch begins. A better epoch's weights, in both files, take another {1000 * weights:.0f} ms"
    )


if __name__ == "__main__":
    if not any(word.startswith("--train.epochs") for word in sys.argv):
        sys.argv += ["--train.epochs", "5"]
    main(measure, continues=False)
