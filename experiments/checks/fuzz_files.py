"""Damaged files: valid files with a random mutation, read by the same functions as in the programs."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.checks.attempts import Report, attempt, explore
from jaxcnn.config.network import NetworkOverrides


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
    """Valid files and folders by kind, each with the function that reads it."""
    import jax
    import numpy as np
    import torch

    from experiments.checks import make_archives as make
    from jaxcnn.cli.config_file import read_config
    from jaxcnn.config import DataConfig, ExperimentConfig, ModelConfig, OptimConfig, TrainConfig
    from jaxcnn.config.experiment import Existing, to_json
    from jaxcnn.data.prepare import prepare
    from jaxcnn.data.sets import load_dataset
    from jaxcnn.model import init_variables
    from jaxcnn.runs.folder import find_finished
    from jaxcnn.runs.reading import read_summary
    from jaxcnn.training.records import EpochRecord
    from jaxcnn.training.step import init_state
    from jaxcnn.weights.checkpoint import open_checkpoints
    from jaxcnn.weights.convert import to_torch
    from jaxcnn.weights.files import write_state_dict
    from jaxcnn.weights.source import read_source
    from jaxcnn.weights.weights_only import load_weights, save_weights

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
            assert np.array_equal(one, other), "damaged weights were restored"
        assert found.records == records, "damaged records were restored"

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
    return {
        "config.json": (folder / "run" / "config.json", lambda path: read_config(path, ExperimentConfig)),
        "run": (folder / "run", read_source),
        "finished run": (folder / "finished", lambda path: find_finished(path, longer, {}, Existing(extend=True))),
        "summary.json": (folder / "summary.json", read_summary),
        "model.pth": (folder / "model.pth", lambda path: read_source(path, NetworkOverrides(input_size=8))),
        "legacy.pth": (folder / "legacy.pth", lambda path: read_source(path, NetworkOverrides(input_size=8))),
        "safetensors": (folder / "model.safetensors", lambda path: read_source(path, NetworkOverrides(input_size=8))),
        "weights checkpoint": (folder / "weights", load_weights),
        "run's checkpoint": (folder / "checkpoints", resume),
        "prepared set": (folder / "sets", load),
        "cache": (folder / "sets", load),  # here the mutation changes the cache
    }


def fuzz_files(count: int, seed: int, folder: Path, report: Report) -> None:
    (folder / "whole").mkdir()
    known = samples(folder / "whole")
    for name, (path, read) in known.items():
        if not attempt(report, f"whole {name}", read, path):
            report.failures.append(f"whole {name}: refused")
    cheap = [name for name in known if "checkpoint" not in name and name not in ("prepared set", "cache")]

    def one(rng: random.Random) -> None:
        number = sum(report.files.values())
        # Slow kinds (a tenth of a second) are read less often.
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
        report.read_all_the_same += attempt(report, what, read, copy)
        report.files[name] = report.files.get(name, 0) + 1

    explore(count, seed, one)
