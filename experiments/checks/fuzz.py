"""Try random configurations and damaged files: each must work or end in one message, and none may hang.

    python -m experiments.checks.fuzz --configs 10000 --files 2000

A configuration is flags, a config.json, or both. For some of the accepted ones, everything up to the first training
step is built, without computing the step. Damaged files are valid ones with a random mutation, and are read by the same
functions as in the programs.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from experiments.checks.attempts import Report, attempt, explore
from experiments.checks.fuzz_files import fuzz_files
from experiments.checks.report import conclude

BUILT = 8  # one of this many accepted configurations is built


# Configurations


ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**63, 10**30, 10**400, 0.0, -0.0, 0.5, 1.0, 1e-300, 1e308),
    *(float("nan"), float("inf"), -float("inf"), "", " ", "None", "0", "1", "-1", "nan", "adam", "digits", "cpu", "/"),
    *("..", "\0", "\ud800", "é", "a" * 300, "--seed", [], [0], [1, 1], [1, 1, 1, 0], [0.5], ["x"], [[1]], [None] * 4),
    *({}, {"x": 1}, {"epochs": 3}, {"name": "digits"}),
]


def leaves(values: dict[str, Any], where: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        place = f"{where}.{key}" if where else key
        found |= leaves(value, place) if isinstance(value, dict) and value else {place: value}
    return found


def near(value: Any, rng: random.Random) -> Any:
    """A random value, of the same type as `value` or of another one."""
    kind = rng.random()
    if kind < 0.35:
        return rng.choice(ODD)
    if isinstance(value, bool) or value is None:
        return rng.choice([True, False, None, 1, 0.5])
    if isinstance(value, int):
        return rng.choice([value + rng.randint(-3, 3), rng.randint(-5, 300), value * rng.randint(0, 10**6)])
    if isinstance(value, float):
        return rng.choice([rng.random(), rng.uniform(-2, 2), 10 ** rng.uniform(-320, 308), value])
    if isinstance(value, list):
        some = [near(each, rng) for each in value]
        return rng.choice([some, value[:-1], [*value, 1], [rng.randint(0, 2) for _ in range(rng.randint(0, 8))]])
    return rng.choice([f"{value}x", "shallow", "sgd", "cosine", "none", "gelu", "flipcrop", "frozen", "deep", value])


def strange_config(kind: type, rng: random.Random) -> Any:
    from jaxcnn.config.experiment import to_json

    values = to_json(kind())
    if rng.random() < 0.03:
        return rng.choice(ODD)
    for place in rng.sample(sorted(leaves(values)), rng.randint(1, 3)):
        *parents, last = place.split(".")
        node: Any = values
        for parent in parents:
            node = node[parent]
        if rng.random() < 0.1:
            del node[last]
        elif rng.random() < 0.1:
            node[last + rng.choice(["s", "_", ""])] = rng.choice(ODD)
        else:
            node[last] = near(node[last], rng)
    if rng.random() < 0.05:
        values[rng.choice(list(values))] = rng.choice(ODD)
    return values


def strange_flags(kind: type, rng: random.Random) -> list[str]:
    from jaxcnn.config.experiment import to_json

    argv = []
    for place, value in rng.sample(sorted(leaves(to_json(kind())).items()), rng.randint(1, 3)):
        made = near(value, rng)
        words = [str(each) for each in made] if isinstance(made, list) else [str(made)]
        flag = f"--{place.replace('_', '-')}"
        argv += [f"{flag}={words[0]}"] if words and rng.random() < 0.3 else [flag, *words]
    return [word.replace("\0", "") for word in argv]


def build(config: Any) -> None:
    """Prepares a run on the digits up to its first step, whose shapes are computed without memory for the network."""
    import jax

    from jaxcnn.config import from_dict
    from jaxcnn.config.experiment import to_json
    from jaxcnn.data.sets import load_dataset
    from jaxcnn.masks import frozen_stages
    from jaxcnn.model import init_variables
    from jaxcnn.training.optim import make_schedule
    from jaxcnn.training.records import Batch
    from jaxcnn.training.step import init_state, make_train_step

    assert from_dict(type(config), to_json(config)) == config
    model = config.model
    if model.input_size > 256:
        return  # would take too long
    data = replace(config.data, name="digits")
    dataset = load_dataset(data, input_size=model.input_size, in_channels=model.in_channels, seed=config.seed)
    frozen = frozen_stages(config.freeze, model, 0)
    steps = -(-len(dataset.train.labels) // config.train.batch_size)
    step = make_train_step(
        model=model, optim=config.optim, standardisation=dataset.standardisation, augmentation=data.augment,
        schedule=make_schedule(config.optim, steps_per_epoch=steps, epochs=config.train.epochs), frozen_stages=frozen,
        layer_decay=config.freeze.layer_decay,
    )  # fmt: skip

    def first(images: Any, labels: Any, mask: Any) -> Any:
        variables = init_variables(model, jax.random.key(config.seed))
        state = init_state(variables, model, config.optim, seed=config.seed, frozen_stages=frozen)
        return step(state, Batch(images, labels, mask), jax.numpy.float32(1))

    size, shape = config.train.batch_size, dataset.train.images.shape[1:]
    kinds = (((size, *shape), "uint8"), ((size,), "int32"), ((size,), "bool"))
    jax.eval_shape(first, *(jax.ShapeDtypeStruct(shape, kind) for shape, kind in kinds))


def fuzz_configs(count: int, seed: int, folder: Path, report: Report) -> None:
    from jaxcnn.cli import flags as cli
    from jaxcnn.cli import transfer_flags
    from jaxcnn.cli.config_file import read_config
    from jaxcnn.config import DataConfig, ExperimentConfig, TransferConfig

    default = ExperimentConfig(data=DataConfig("digits", augment="none"))
    path = folder / "config.json"
    accepted: list[Any] = []

    def one(rng: random.Random) -> None:
        number = report.configurations
        kind = rng.choice([ExperimentConfig, TransferConfig])
        argv: list[str] = []
        if number % 10 < 8:
            values = strange_config(kind, rng)
            path.write_text(json.dumps(values))
            what = f"configuration {values!r}"[:1500]
            works = attempt(report, what, lambda kind: accepted.append(read_config(path, kind)), kind)
        else:
            argv = strange_flags(kind, rng)
            if number % 10 == 9:
                path.write_text(json.dumps(strange_config(kind, rng)))
                argv += ["--config", str(path)]
            parse = transfer_flags.parse if kind is TransferConfig else partial(cli.parse, default, "")
            works = attempt(report, f"flags {argv}", lambda parse, argv: accepted.append(parse(argv)[0]), parse, argv)
        report.configurations += 1
        report.accepted += works
        if works and report.accepted % BUILT == 1:
            config = accepted[-1][0] if isinstance(accepted[-1], list) else accepted[-1]
            report.built += attempt(report, f"building {config}", build, config)

    explore(count, seed, one)


# Files


def run(configs: int, files: int, seed: int, folder: Path) -> Report:
    report, began = Report(), time.monotonic()
    before, hook = os.environ.get("XDG_CACHE_HOME"), sys.unraisablehook
    # Errors in threads and abandoned coroutines, which Python would print as tracebacks.
    sys.unraisablehook = lambda error: report.failures.append(
        f"{error.err_msg}: {error.exc_value!r} {error.object!r}"[:300]
    )
    try:
        fuzz_configs(configs, seed, folder, report)
        fuzz_files(files, seed, folder, report)
    finally:
        sys.unraisablehook = hook
        os.environ.pop("XDG_CACHE_HOME", None)
        if before is not None:
            os.environ["XDG_CACHE_HOME"] = before
    report.seconds = round(time.monotonic() - began, 1)
    return report


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m experiments.checks.fuzz", description=__doc__.partition("\n")[0])
    made.add_argument("--configs", type=int, default=10_000, help="how many configurations (default: 10000)")
    made.add_argument("--files", type=int, default=2_000, help="how many damaged files (default: 2000)")
    made.add_argument("--seed", type=int, default=0, help="seed of the choices (default: 0)")
    made.add_argument("--json", action="store_true", help="print the report as JSON")
    return made


def main(argv: list[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="jaxcnn-fuzz-") as folder:
        report = run(flags.configs, flags.files, flags.seed, Path(folder))
    kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(report.files).most_common())
    text = (
        f"{report.configurations} configurations, {report.accepted} of them accepted, {report.built} built; "
        f"{sum(report.files.values())} damaged files ({kinds}), {report.read_all_the_same} of them still readable; "
        f"slowest {report.slowest} s"
    )
    return conclude(report, text, flags.json)


if __name__ == "__main__":
    raise SystemExit(main())
