"""Random configurations and damaged files: each must work or be refused by an `InputError`, and none may hang.

    python -m tests.fuzz --configs 10000 --files 2000

Configurations are flags, a config.json or both; some of those that are accepted are built as far as the first training
step, without computing it. Files are whole ones with a random mutation, read by what reads them in the programs.
"""

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(Path(__file__).parent))  # for make_archives, as `python -m tests.fuzz` needs it

LIMIT = 10  # seconds
BUILT = 8  # of so many accepted configurations, one is built


@dataclass
class Report:
    configurations: int = 0
    accepted: int = 0
    built: int = 0
    files: dict[str, int] = field(default_factory=dict)
    read_all_the_same: int = 0
    slowest: float = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0


class Hang(BaseException):
    """No `Exception`, which a library may take for an error of its own and go on."""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    def handle(number: int, frame: FrameType | None) -> None:
        raise Hang(f"more than {LIMIT} s")

    before = signal.signal(signal.SIGALRM, handle)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def attempt(report: Report, what: str, work: Callable[[], object]) -> bool:
    """Whether it worked; anything but an `InputError`, or tyro's own refusal of a flag, is a failure."""
    from jaxcnn.errors import InputError

    began = time.monotonic()
    quiet = io.StringIO()
    try:
        with limited(), contextlib.redirect_stderr(quiet), contextlib.redirect_stdout(quiet):
            work()
        return True
    except InputError as error:
        if "\n" in str(error) or not str(error):
            report.failures.append(f"{what}: a message of several lines or none: {error}")
    except SystemExit as end:
        if end.code not in (0, 2):
            report.failures.append(f"{what}: status {end.code}")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        where = traceback.extract_tb(error.__traceback__)[-1]
        report.failures.append(f"{what}: {type(error).__name__}: {str(error)[:200]} ({where.filename}:{where.lineno})")
    finally:
        report.slowest = max(report.slowest, round(time.monotonic() - began, 2))
    return False


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
    """Something of the value's kind, or not at all."""
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
    from experiments.config_file import to_json

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
    from experiments.config_file import to_json

    argv = []
    for place, value in rng.sample(sorted(leaves(to_json(kind())).items()), rng.randint(1, 3)):
        made = near(value, rng)
        words = [str(each) for each in made] if isinstance(made, list) else [str(made)]
        flag = f"--{place.replace('_', '-')}"
        argv += [f"{flag}={words[0]}"] if words and rng.random() < 0.3 else [flag, *words]
    return [word.replace("\0", "") for word in argv]


def build(config: Any) -> None:
    """All of a run before its first step, on the digits and without memory for the network."""
    import jax

    from experiments.config_file import to_json
    from jaxcnn.config import from_dict
    from jaxcnn.data import load_dataset
    from jaxcnn.masks import frozen_stages
    from jaxcnn.model import init_variables
    from jaxcnn.optim import make_schedule
    from jaxcnn.step import Batch, init_state, make_train_step

    assert from_dict(type(config), to_json(config)) == config
    model = config.model
    if model.input_size > 256:
        return  # a matter of patience
    data = replace(config.data, name="digits")
    dataset = load_dataset(data, input_size=model.input_size, in_channels=model.in_channels, seed=config.seed)
    frozen = frozen_stages(config.freeze, model, 0)
    steps = -(-len(dataset.train.labels) // config.train.batch_size)
    step = make_train_step(
        model=model, optim=config.optim, mean=dataset.mean, std=dataset.std, augmentation=data.augment,
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


def explore(count: int, seed: int, one: Callable[[random.Random], None]) -> None:
    """Has hypothesis draw so many examples. Nothing is shrunk: what fails is reported, and the others go on."""

    @hypothesis.seed(seed)
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=True))
    def example(rng: random.Random) -> None:
        one(rng)

    example()


def fuzz_configs(count: int, seed: int, folder: Path, report: Report) -> None:
    from experiments import cli, transfer
    from experiments.config_file import read_config
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
            works = attempt(report, what, lambda kind=kind: accepted.append(read_config(path, kind)))
        else:
            argv = strange_flags(kind, rng)
            if number % 10 == 9:
                path.write_text(json.dumps(strange_config(kind, rng)))
                argv += ["--config", str(path)]
            parse = transfer.parse if kind is TransferConfig else lambda words: cli.parse(default, "", words)
            works = attempt(report, f"flags {argv}", lambda argv=argv, parse=parse: accepted.append(parse(argv)[0]))
        report.configurations += 1
        report.accepted += works
        if works and report.accepted % BUILT == 1:
            config = accepted[-1][0] if isinstance(accepted[-1], list) else accepted[-1]
            report.built += attempt(report, f"building {config}", lambda config=config: build(config))

    explore(count, seed, one)


# Files


def mutate(data: bytes, rng: random.Random) -> bytes:
    made = bytearray(data)
    size = len(made)
    at, length = rng.randrange(size + 1), rng.choice([1, 2, 4, 8, 64, 1000])
    match rng.randrange(7):
        case 0:
            return bytes(made[:at])
        case 1:
            for _ in range(rng.choice([1, 1, 2, 8])):
                if size:
                    made[rng.randrange(size)] ^= 1 << rng.randrange(8)
        case 2:
            made[at : at + length] = rng.randbytes(length)
        case 3:
            del made[at : at + length]
        case 4:
            made[at:at] = made[max(0, at - length) : at]
        case 5:
            made[at : at + length] = rng.choice([b"\0", b"\xff", b"\x7f", b"9", b'"', b"["]) * length
        case _:
            return rng.choice([b"", b"\0", b"[]", b"{}", b"null", b"PK\3\4", b"[" * 100_000, rng.randbytes(300)])
    return bytes(made)


def samples(folder: Path) -> dict[str, tuple[Path, Callable[[Path], object]]]:
    """Whole files and folders by their kind, and what reads them."""
    import jax
    import make_archives as make
    import numpy as np
    import torch

    from experiments.config_file import Existing, read_config, to_json
    from experiments.folder import find_finished, read_summary
    from jaxcnn.archives import CIFAR10, CIFAR100, read_cifar_binary, read_cifar_python, read_svhn
    from jaxcnn.checkpoint import open_checkpoints
    from jaxcnn.config import DataConfig, ExperimentConfig, ModelConfig, OptimConfig, TrainConfig
    from jaxcnn.convert import to_torch
    from jaxcnn.data import load_dataset
    from jaxcnn.model import init_variables
    from jaxcnn.prepare import prepare
    from jaxcnn.source import read_source, write_state_dict
    from jaxcnn.step import init_state
    from jaxcnn.train import EpochRecord
    from jaxcnn.weights_checkpoint import load_weights, save_weights

    model = ModelConfig(8, 1, 3, (4, 8, 16, 8), (1, 1), (1, 0), (1, 0), 2)
    variables = init_variables(model, jax.random.key(0))

    def state() -> Any:
        return init_state(variables, model, OptimConfig(), seed=0)

    def resume(path: Path) -> None:
        with open_checkpoints(path) as checkpoints:
            found = checkpoints.restore(lambda epoch: state())
        if found is None:
            return
        for one, other in zip(jax.tree.leaves(found.state), jax.tree.leaves(state()), strict=True):
            assert np.array_equal(one, other), "wrong weights were taken for whole ones"
        assert found.records == records, "wrong records were taken for whole ones"

    def load(path: Path) -> None:
        load_dataset(DataConfig("cifar10", dir=path), input_size=32, in_channels=3, seed=0)

    records = [EpochRecord(1, 0.1, 10.0, 0.2, 20.0, 1e-3, 1.0, 2.0)]
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text(json.dumps(to_json(ExperimentConfig(model=model))))
    for suffix in ("pth", "safetensors"):
        write_state_dict(folder / f"model.{suffix}", variables, model)
    shutil.copy(folder / "model.pth", folder / "run")
    torch.save(to_torch(variables, model), folder / "legacy.pth", _use_new_zipfile_serialization=False)
    summary = {"name": "a", "dataset": "b", "mask": "full", "seed": 0, "stopped": "c", "best_epoch": 1, "epochs": 200}
    numbers = ("test_accuracy", "test_loss", "val_accuracy", "val_loss", "seconds", "images_per_second", "wall_seconds")
    summary |= dict.fromkeys(numbers, 0.5) | {"trainable_parameters": 1, "total_parameters": 2}
    (folder / "summary.json").write_text(json.dumps(summary))
    shutil.copytree(folder / "run", folder / "finished")
    shutil.copy(folder / "summary.json", folder / "finished")
    longer = ExperimentConfig(model=model, train=TrainConfig(epochs=300))
    save_weights(folder / "weights", variables, model)
    with open_checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(state(), records)
    checksums = make.write_official(folder / "archives", "cifar10", make.cifar10(4))
    prepare("cifar10", folder / "sets", folder / "archives", checksums)
    archive = make.write_tar(folder / "cifar100.tar.gz", make.binary_members(make.cifar100()))
    make.write_mat(folder / "train.mat", make.svhn()["train"])
    make.write_python(folder / "python", "cifar10", make.cifar10(2), unpacked=True, dump=make.python2_pickle)
    return {
        "config.json": (folder / "run" / "config.json", lambda path: read_config(path, ExperimentConfig)),
        "run": (folder / "run", read_source),
        "finished run": (folder / "finished", lambda path: find_finished(path, longer, {}, Existing(extend=True))),
        "summary.json": (folder / "summary.json", read_summary),
        "model.pth": (folder / "model.pth", lambda path: read_source(path, input_size=8)),
        "legacy.pth": (folder / "legacy.pth", lambda path: read_source(path, input_size=8)),
        "safetensors": (folder / "model.safetensors", lambda path: read_source(path, input_size=8)),
        "weights checkpoint": (folder / "weights", load_weights),
        "run's checkpoint": (folder / "checkpoints", resume),
        "prepared set": (folder / "sets", load),
        "cache": (folder / "sets", load),  # whose cache is what is changed
        "cifar10 tar.gz": (folder / "archives" / "cifar-10-binary.tar.gz", lambda p: read_cifar_binary(p, CIFAR10)),
        "cifar100 tar.gz": (archive, lambda path: read_cifar_binary(path, CIFAR100)),
        "pickles": (folder / "python" / "cifar-10-batches-py", lambda path: read_cifar_python(path, CIFAR10)),
        "svhn mat": (folder / "train.mat", read_svhn),
    }


def fuzz_files(count: int, seed: int, folder: Path, report: Report) -> None:
    (folder / "whole").mkdir()
    known = samples(folder / "whole")
    for name, (path, read) in known.items():
        if not attempt(report, f"whole {name}", lambda path=path, read=read: read(path)):
            report.failures.append(f"whole {name}: refused")
    cheap = [name for name in known if "checkpoint" not in name and name not in ("prepared set", "cache")]

    def one(rng: random.Random) -> None:
        number = sum(report.files.values())
        # What takes a tenth of a second to read is read less often.
        name = rng.choice(list(known) if number % 4 == 0 else cheap)
        path, read = known[name]
        place = folder / "changed"
        cache = folder / "cache"
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(cache, ignore_errors=True)
        place.mkdir()
        os.environ["XDG_CACHE_HOME"] = str(cache)
        copy = place / path.name
        shutil.copytree(path, copy) if path.is_dir() else shutil.copy(path, copy)
        inside = copy
        if name == "cache":
            read(copy)
            inside = cache
        files = sorted(each for each in inside.rglob("*") if each.is_file()) if inside.is_dir() else [inside]
        target = rng.choice(files)
        if len(files) > 1 and rng.random() < 0.05:
            target.unlink()
        else:
            target.write_bytes(mutate(target.read_bytes(), rng))
        what = f"{name}, file {number} ({target.relative_to(folder)})"
        report.read_all_the_same += attempt(report, what, lambda read=read, copy=copy: read(copy))
        report.files[name] = report.files.get(name, 0) + 1

    explore(count, seed, one)


def run(configs: int, files: int, seed: int, folder: Path) -> Report:
    report, began = Report(), time.monotonic()
    before, hook = os.environ.get("XDG_CACHE_HOME"), sys.unraisablehook
    # What threads and forgotten coroutines would print as a traceback.
    sys.unraisablehook = lambda told: report.failures.append(
        f"{told.err_msg}: {told.exc_value!r} {told.object!r}"[:300]
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
    made = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    made.add_argument("--configs", type=int, default=10_000, help="how many configurations (default: 10000)")
    made.add_argument("--files", type=int, default=2_000, help="how many damaged files (default: 2000)")
    made.add_argument("--seed", type=int, default=0, help="of the choices (default: 0)")
    made.add_argument("--json", action="store_true", help="print the report as JSON")
    return made


def main(argv: list[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="jaxcnn-fuzz-") as folder:
        report = run(flags.configs, flags.files, flags.seed, Path(folder))
    if flags.json:
        print(json.dumps(asdict(report), indent=2))
    else:
        kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(report.files).most_common())
        print(
            f"{report.configurations} configurations, {report.accepted} of them accepted, {report.built} built; "
            f"{sum(report.files.values())} damaged files ({kinds}), {report.read_all_the_same} of them read all the "
            f"same; slowest {report.slowest} s; {len(report.failures)} failures; {report.seconds:.0f} s"
        )
        print(*(f"FAILED {failure}" for failure in report.failures), sep="\n", end="")
    return int(bool(report.failures))


if __name__ == "__main__":
    raise SystemExit(main())
