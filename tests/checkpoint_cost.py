"""What a checkpoint an epoch costs: the same epochs with and without, by turns, in one process.

    python -m tests.checkpoint_cost --data.name digits --train.epochs 5
    python -m tests.checkpoint_cost --data.name cifar10 --data.dir DIR --data.fraction 0.1 --train.epochs 3

Flags are those of `experiments.train`; `--train.epochs` is the number of epochs measured of each kind. The cost of an
epoch that is saved counts all that it delays: the copying, the writing, and what either leaves to the next epoch,
which is why two epochs in a row are of one kind and both are timed.
"""

import math
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import jax

from experiments.cli import main, parse
from experiments.run import select_device
from experiments.train import DEFAULT
from jaxcnn.checkpoint import open_checkpoints
from jaxcnn.convert import write_state_dict
from jaxcnn.data import load_dataset
from jaxcnn.model import init_variables
from jaxcnn.step import init_state
from jaxcnn.train import EpochRecord, fit


def measure() -> None:
    config, _ = parse(DEFAULT, "Measure what checkpoints cost.")
    select_device(config.device)
    rounds = config.train.epochs
    # A warm-up, then pairs of epochs: saved, saved, not, not, saved, saved, ...
    train = replace(config.train, epochs=4 * rounds + 1, early_stopping_patience=None, early_stopping_target=None)
    config = replace(config, train=train)
    model = config.model
    dataset = load_dataset(config.data, input_size=model.input_size, in_channels=model.in_channels, seed=config.seed)
    config = replace(config, model=replace(model, num_classes=dataset.num_classes))
    variables = init_variables(config.model, jax.random.key(config.seed))
    state = init_state(variables, config.model, config.optim, seed=config.seed)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    held = 0.0
    records: list[EpochRecord] = []
    with tempfile.TemporaryDirectory() as folder, open_checkpoints(Path(folder)) as checkpoints:
        began = time.perf_counter()
        for trained, record in fit(state, config, dataset):
            records.append(record)
            number = len(records) - 2
            saved = number >= 0 and number % 4 < 2
            if saved:
                before = time.perf_counter()
                checkpoints.save(trained, records)
                held += time.perf_counter() - before
            now = time.perf_counter()
            if number >= 0:
                seconds[saved].append(now - began)
            began = now
    pairs = {
        kind: [sum(pair) / 2 for pair in zip(each[::2], each[1::2], strict=True)] for kind, each in seconds.items()
    }
    differences = [with_ - without for with_, without in zip(pairs[True], pairs[False], strict=True)]
    plain = statistics.mean(pairs[False])
    cost, error = statistics.mean(differences), statistics.stdev(differences) / math.sqrt(len(differences))
    with tempfile.TemporaryDirectory() as folder:
        best = {"params": trained.params, "batch_stats": trained.batch_stats}
        for _ in range(2):  # the first one imports torch, once in a run
            began = time.perf_counter()
            write_state_dict(Path(folder) / "model.pth", best, config.model)
            weights = time.perf_counter() - began
    print(
        f"{dataset.name}, {len(dataset.train.labels):,} training images: an epoch takes {plain:.3f} s without and "
        f"{statistics.mean(pairs[True]):.3f} s with a checkpoint: {cost * 1000:.0f} ± {error * 1000:.0f} ms more, "
        f"{100 * cost / plain:.1f} ± {100 * error / plain:.1f} % of an epoch (n = {len(differences)} pairs of "
        f"epochs of each kind, standard error); of this, {1000 * held / (2 * len(differences)):.0f} ms hold training "
        f"up. A better epoch's model.pth takes another {1000 * weights:.0f} ms"
    )


if __name__ == "__main__":
    if not any(word.startswith("--train.epochs") for word in sys.argv):
        sys.argv += ["--train.epochs", "5"]
    main(measure)
