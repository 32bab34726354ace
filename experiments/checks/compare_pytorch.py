"""Compare training in this project and in PyTorch on CIFAR-10, from the same weights and with the same order of images.

    python -m experiments.checks.compare_pytorch --data.dir DIR

DIR is the folder of the prepared data set. Both programs train the shallow network without dropout or augmentation, at
a constant learning rate, so they differ only in rounding. For each seed both start from the weights that this project
draws. The first steps are also computed in float64, where the two must agree: in float32, Adam's first steps amplify
rounding a thousandfold. `--optimizer sgd` does not amplify it.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import torch

from jaxcnn import SHALLOW, DataConfig, Dataset, OptimConfig, init_variables, load_dataset
from jaxcnn.data.splits import Split, epoch_order
from jaxcnn.errors import JaxcnnError
from jaxcnn.training.epoch import batches, default_steps_per_call, evaluate, make_train_epoch
from jaxcnn.training.optim import make_schedule
from jaxcnn.training.records import TrainStep
from jaxcnn.training.step import init_state, make_eval_step, make_train_step
from jaxcnn.weights.convert import to_torch
from jaxcnn.weights.pytorch_network import torch_network

MODEL = replace(SHALLOW, dropout_rate=0.0)
OPTIMS = {
    "adam": OptimConfig(optimizer="adam", learning_rate=1e-3, weight_decay=1e-5, schedule="constant"),
    "sgd": OptimConfig(optimizer="sgd", learning_rate=1e-2, momentum=0.9, weight_decay=1e-5, schedule="constant"),
}
FIRST = 10  # number of steps whose losses are compared one by one


class Result(NamedTuple):
    """The result of one program with one seed."""

    losses: list[float]
    """Mean loss of each step, in nats."""
    doubles: list[float]
    """Losses of the first steps, computed in float64."""
    accuracy: float
    """Final accuracy on the test images, in percent."""
    seconds: float
    """Time of all epochs, with compilation and without evaluation."""


def say(text: str) -> None:
    print(text, flush=True)


def train_jax(
    variables: Any, dataset: Dataset, optim: OptimConfig, *, seed: int, epochs: int, batch_size: int
) -> Result:
    n = len(dataset.train.labels)
    schedule = make_schedule(optim, steps_per_epoch=-(-n // batch_size), epochs=epochs)
    step = make_train_step(
        model=MODEL,
        optim=optim,
        schedule=schedule,
        standardisation=dataset.standardisation,
        augmentation="none",
    )
    train_epoch = make_train_epoch(step, dataset.train, batch_size, steps_per_call=default_steps_per_call())
    state = init_state(variables, MODEL, optim, seed=seed)
    losses: list[float] = []
    seconds = 0.0
    doubles = first_doubles_jax(step, variables, dataset.train, optim, seed=seed, batch_size=batch_size)
    for epoch in range(epochs):
        began = time.perf_counter()
        state, metrics = train_epoch(state, epoch_order(seed, epoch, n), 1.0, lambda seen, total: None)
        losses += (metrics.loss / metrics.count).tolist()
        seconds += time.perf_counter() - began
        say(f"seed {seed}  jax      epoch {epoch + 1}/{epochs}  loss {metrics.loss.sum() / n:.6f}  {seconds:.1f} s")
    eval_step = jax.jit(make_eval_step(model=MODEL, standardisation=dataset.standardisation))
    trained = {"params": state.params, "batch_stats": state.batch_stats}
    return Result(losses, doubles, float(evaluate(eval_step, trained, dataset.test, batch_size)[1]), seconds)


def first_doubles_jax(
    step: TrainStep, variables: Any, split: Split, optim: OptimConfig, *, seed: int, batch_size: int
) -> list[float]:
    """Losses of the first steps in float64."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: np.asarray(a, np.float64 if a.dtype == np.float32 else a.dtype), variables)
        state, jitted, losses = init_state(wide, MODEL, optim, seed=seed), jax.jit(step), []
        for batch in islice(batches(split, epoch_order(seed, 0, len(split.labels)), batch_size), FIRST):
            state, metrics = jitted(state, batch, 1.0)
            losses.append(float(metrics.loss / metrics.count))
    return losses


def train_torch(
    variables: Any, dataset: Dataset, optim: OptimConfig, *, seed: int, epochs: int, batch_size: int
) -> Result:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    mean, std = (
        torch.tensor(values, device=device, dtype=torch.float64).view(1, -1, 1, 1) for values in dataset.standardisation
    )

    def batches(split: Split, order: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            images = torch.from_numpy(split.images[indices]).to(device).permute(0, 3, 1, 2)
            labels = torch.from_numpy(split.labels[indices]).to(device).long()
            yield ((images.to(mean.dtype) / 255 - mean) / std).contiguous(), labels

    def begin() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        network = torch_network(to_torch(variables, MODEL), MODEL).to(device, mean.dtype)
        common: dict[str, Any] = {"lr": optim.learning_rate, "weight_decay": optim.weight_decay}
        if optim.optimizer == "sgd":
            return network, torch.optim.SGD(network.parameters(), momentum=optim.momentum, **common)
        return network, torch.optim.Adam(network.parameters(), **common)

    n = len(dataset.train.labels)
    network, optimizer = begin()
    doubles = []
    for images, labels in islice(batches(dataset.train, epoch_order(seed, 0, n)), FIRST):
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        doubles.append(loss.item())
    mean, std = mean.float(), std.float()
    network, optimizer = begin()
    losses: list[float] = []
    seconds = 0.0
    for epoch in range(epochs):
        began = time.perf_counter()
        network.train()
        total, seen = 0.0, []
        for images, labels in batches(dataset.train, epoch_order(seed, epoch, n)):
            loss = torch.nn.functional.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append((loss.detach(), len(labels)))  # converted after the epoch, so that no step waits
        losses += [loss.item() for loss, _ in seen]
        total = sum(loss.item() * count for loss, count in seen)
        seconds += time.perf_counter() - began
        say(f"seed {seed}  pytorch  epoch {epoch + 1}/{epochs}  loss {total / n:.6f}  {seconds:.1f} s")
    network.eval()
    with torch.no_grad():
        order = np.arange(len(dataset.test.labels))
        correct = sum((network(x).argmax(1) == labels).sum().item() for x, labels in batches(dataset.test, order))
    return Result(losses, doubles, 100 * correct / len(order), seconds)


def hardware() -> dict[str, str]:
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    torch_device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    return {
        "cpu": f"{name}, {len(os.sched_getaffinity(0))} cores",
        "jax": f"{version('jax')} on {jax.devices()[0].device_kind}",
        "pytorch": f"{torch.__version__} (eager) on {torch_device}",
        "python": platform.python_version(),
    }


def largest_difference(one: list[float], other: list[float]) -> float:
    return float(np.abs(np.subtract(one, other)).max())


def compare(dataset: Dataset, optim: OptimConfig, *, seeds: list[int], epochs: int, batch_size: int) -> dict[str, Any]:
    """Trains both programs with every seed, and returns the results as JSON values."""
    pairs = []
    for seed in seeds:
        variables = init_variables(MODEL, jax.random.key(seed))
        ours, theirs = (
            train(variables, dataset, optim, seed=seed, epochs=epochs, batch_size=batch_size)
            for train in (train_jax, train_torch)
        )
        say(f"seed {seed}  test accuracy: jax {ours.accuracy:.2f} %, pytorch {theirs.accuracy:.2f} %")
        pairs.append((seed, ours, theirs))
    differences = np.array([ours.accuracy - theirs.accuracy for _, ours, theirs in pairs])
    return {
        "hardware": hardware(),
        "images": {"train": len(dataset.train.labels), "test": len(dataset.test.labels)},
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer": optim.optimizer,
        "seeds": [
            {
                "seed": seed,
                "first_losses": {"jax": ours.losses[:FIRST], "pytorch": theirs.losses[:FIRST]},
                "largest_difference_of_first_losses": largest_difference(ours.losses[:FIRST], theirs.losses[:FIRST]),
                "first_losses_in_float64": {"jax": ours.doubles, "pytorch": theirs.doubles},
                "largest_difference_in_float64": largest_difference(ours.doubles, theirs.doubles),
                "largest_difference_to_its_own_float64": {
                    name: largest_difference(one.losses[: len(one.doubles)], one.doubles)
                    for name, one in (("jax", ours), ("pytorch", theirs))
                },
                "last_loss": {"jax": ours.losses[-1], "pytorch": theirs.losses[-1]},
                "test_accuracy": {"jax": ours.accuracy, "pytorch": theirs.accuracy},
                "seconds": {"jax": ours.seconds, "pytorch": theirs.seconds},
            }
            for seed, ours, theirs in pairs
        ],
        "accuracy_difference": {
            "mean": float(differences.mean()),
            "standard_error": float(differences.std(ddof=1) / len(pairs) ** 0.5) if len(pairs) > 1 else None,
        },
        "seconds": {
            "jax": sum(ours.seconds for _, ours, _ in pairs),
            "pytorch": sum(theirs.seconds for _, _, theirs in pairs),
        },
    }


def report(result: dict[str, Any]) -> None:
    """Prints the results of `compare`."""
    for each in result["seeds"]:
        say(f"\nseed {each['seed']}: loss of the first steps")
        ours, theirs = each["first_losses"]["jax"], each["first_losses"]["pytorch"]
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            say(f"  step {i}: jax {a:.8f}  pytorch {b:.8f}  difference {a - b:+.1e}")
        say(f"  largest difference {each['largest_difference_of_first_losses']:.1e}")
        say(f"  in float64 {each['largest_difference_in_float64']:.1e}")
        own = each["largest_difference_to_its_own_float64"]
        say(f"  of float32 to float64: jax {own['jax']:.1e}, pytorch {own['pytorch']:.1e}")
    say(f"\ntest accuracy on {result['images']['test']:,} images (%)")
    for each in result["seeds"]:
        ours, theirs = each["test_accuracy"]["jax"], each["test_accuracy"]["pytorch"]
        say(f"  seed {each['seed']}: jax {ours:.2f}  pytorch {theirs:.2f}  difference {ours - theirs:+.2f}")
    mean, error = result["accuracy_difference"]["mean"], result["accuracy_difference"]["standard_error"]
    say(f"  mean difference {mean:+.3f}, standard error {'unknown of one seed' if error is None else f'{error:.3f}'}")
    ours, theirs = result["seconds"]["jax"], result["seconds"]["pytorch"]
    say(f"training: jax {ours:.1f} s (with compilation), pytorch {theirs:.1f} s")
    for name, value in result["hardware"].items():
        say(f"{name}: {value}")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m experiments.checks.compare_pytorch", description=__doc__)
    made.add_argument(
        "--data.dir", dest="dir", type=Path, help="folder of prepared tfds data sets; tfds's own if not given"
    )
    made.add_argument("--data.archives", dest="archives", type=Path, help="folder of archives already downloaded")
    made.add_argument("--images", type=int, default=10_000, help="number of training images (10000)")
    made.add_argument("--epochs", type=int, default=5, help="epochs of each run (5)")
    made.add_argument("--batch-size", type=int, default=256, help="images per step (256)")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds (0 1 2)")
    made.add_argument("--optimizer", choices=list(OPTIMS), default="adam", help="of both (adam)")
    made.add_argument("--json", type=Path, help="write the numbers to this file too")
    return made


def main() -> None:
    """Runs the program."""
    flags = parser().parse_args()
    if min(flags.images, flags.epochs, flags.batch_size) < 1:
        parser().error("--images, --epochs and --batch-size must be at least 1")
    try:
        config = DataConfig(name="cifar10", dir=flags.dir, archives=flags.archives, validation=0.0, augment="none")
        dataset = load_dataset(config, input_size=MODEL.input_size, in_channels=MODEL.in_channels, seed=0)
    except JaxcnnError as error:
        parser().error(str(error))
    train = Split(dataset.train.images[: flags.images], dataset.train.labels[: flags.images])
    result = compare(
        replace(dataset, train=train),
        OPTIMS[flags.optimizer],
        seeds=flags.seeds,
        epochs=flags.epochs,
        batch_size=flags.batch_size,
    )
    report(result)
    if flags.json is not None:
        flags.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
