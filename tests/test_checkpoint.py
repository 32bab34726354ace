"""Checkpoints: every bit is restored, and damaged or wrong checkpoints are refused."""

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import torch

from jaxcnn import InputError, ModelConfig, OptimConfig
from jaxcnn.config import ExperimentConfig, FreezeConfig
from jaxcnn.errors import MachineError
from jaxcnn.training.records import EpochRecord, Metrics, TrainState
from jaxcnn.training.step import init_state
from jaxcnn.weights.checkpoint import open_checkpoints
from jaxcnn.weights.convert import from_torch
from jaxcnn.weights.pytorch_network import TorchCNN
from jaxcnn.weights.weights_only import load_weights, save_weights

MODEL = ModelConfig(
    input_size=4, hidden_dims=(2, 3, 4, 5), layers_per_block=(1, 2), apply_pooling=(1, 0), apply_bn=(1, 0),
    num_blocks=2, num_classes=3, activation_function="gelu", dropout_rate=0.35,
)  # fmt: skip
NO_NORM = ModelConfig(**{**vars(MODEL), "apply_bn": (0, 0)})


@cache
def state_shapes(model: ModelConfig, optimizer: Any, frozen_stages: int) -> TrainState:
    variables = from_torch(TorchCNN(model).state_dict(), model)
    options: dict[str, Any] = {"seed": 0, "frozen_stages": frozen_stages}
    state: TrainState = jax.eval_shape(
        lambda: init_state(variables, model, OptimConfig(optimizer=optimizer), **options)
    )
    return state


def draw_state(seed: int, model: ModelConfig = MODEL, optimizer: Any = "adam", frozen_stages: int = 1) -> TrainState:
    """A state with no two numbers alike, some of them extreme."""
    state = state_shapes(model, optimizer, frozen_stages)
    rng = np.random.default_rng(seed)

    def draw(leaf: Any) -> Any:
        if np.issubdtype(leaf.dtype, np.integer):
            return rng.integers(0, np.iinfo(leaf.dtype).max, leaf.shape, leaf.dtype)
        values = rng.standard_normal(leaf.shape).astype(leaf.dtype)
        values.flat[:1] = rng.choice([np.float32(1e-45), np.float32(-0.0), np.float32(3.4e38), np.nan])
        return values

    return jax.tree.map(lambda leaf: jax.numpy.asarray(draw(leaf)), state)._replace(step=jax.numpy.int32(seed))


def draw_records(n: int) -> list[EpochRecord]:
    rng = np.random.default_rng(n)
    extremes = [0.1 + 0.2, 1 / 3, 5e-324, 1.7976931348623157e308, math.pi, 1e-308, math.inf]
    return [
        EpochRecord(i + 1, extremes[i % 7], *rng.random(3).tolist(), *rng.random(3).tolist())._replace(
            **({"val_loss": None, "val_accuracy": None} if i == 2 else {})
        )
        for i in range(n)
    ]


def assert_same_bits(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(map(np.asarray, jax.tree.leaves(one)), map(np.asarray, jax.tree.leaves(other)), strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


@pytest.mark.parametrize(
    ("model", "optimizer", "frozen_stages"), [(MODEL, "adam", 1), (NO_NORM, "sgd", 0), (MODEL, "adamw", 4)]
)
def test_the_newest_state_and_its_records_come_back_bit_by_bit(
    model: ModelConfig, optimizer: str, frozen_stages: int, tmp_path: Path
) -> None:
    kind = {"model": model, "optimizer": optimizer, "frozen_stages": frozen_stages}
    folder = tmp_path / "run/checkpoints"
    asked = []

    def like(epoch: int) -> TrainState:
        asked.append(epoch)
        return draw_state(99, **kind)

    with open_checkpoints(folder) as checkpoints:
        assert checkpoints.restore(like) is None
        for epochs in range(1, 5):
            checkpoints.save(draw_state(epochs, **kind), draw_records(epochs))
    with open_checkpoints(folder) as checkpoints:
        restored = checkpoints.restore(like)
        assert restored is not None
        state, records, part = restored
        assert asked == [3]
        assert part is None
        assert isinstance(state, TrainState)
        assert_same_bits(state, draw_state(4, **kind))
        assert records == draw_records(4)  # floats exactly, None as None
        # and it goes on from there
        checkpoints.save(draw_state(5, **kind), draw_records(5))
    with open_checkpoints(folder) as checkpoints:
        restored = checkpoints.restore(like)
    assert restored is not None
    assert_same_bits(restored[0], draw_state(5, **kind))
    assert sorted(p.name for p in folder.iterdir() if p.name.isdigit()) == ["4", "5"]  # the last two only


def test_what_is_saved_is_the_state_of_that_moment(tmp_path: Path) -> None:
    """Steps that reuse the state's buffers go on while the checkpoint is still being written."""
    spoil = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 0 + 7, state), donate_argnums=0)
    state = jax.tree.map(lambda leaf: jax.numpy.full((2**20,), 3, leaf.dtype), draw_state(1).params["fc1"])
    full = draw_state(1)._replace(params={"fc1": state})
    wanted = jax.tree.map(lambda leaf: np.array(leaf), full)
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(full, draw_records(1))
        spoiled = spoil(full)
        assert float(spoiled.params["fc1"]["kernel"][0]) == 7
    with open_checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(lambda epoch: wanted)
    assert restored is not None
    assert_same_bits(restored[0], wanted)


def truncate(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(next(p for p in sorted(folder.rglob(name)) if p.is_dir()))


def lose_the_largest(folder: Path) -> None:
    max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size).unlink()


@pytest.mark.parametrize("damage", [truncate, remove("state"), remove("progress"), lose_the_largest])
def test_a_damaged_checkpoint_of_a_run_is_refused(damage: Callable[[Path], None], tmp_path: Path) -> None:
    with open_checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(draw_state(1), draw_records(1))
    damage(tmp_path / "run")
    with open_checkpoints(tmp_path / "run") as checkpoints, pytest.raises(InputError):
        checkpoints.restore(lambda epoch: draw_state(0))


# Two files an array: a third of the files, or a ninth, has some of each kind.
@pytest.mark.slow
@pytest.mark.parametrize(("every", "flips"), [(9, 2), (3, 8)])
def test_a_flipped_bit_is_noticed_wherever_it_is_and_the_checkpoint_before_is_used(
    every: int, flips: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = ModelConfig(**{**vars(MODEL), "hidden_dims": (2, 16, 64, 5)})  # large enough for files of their own
    states = [draw_state(epoch, wide) for epoch in (1, 2)]
    with open_checkpoints(tmp_path / "run") as checkpoints:
        for epoch, state in enumerate(states, 1):
            checkpoints.save(state, draw_records(epoch))
    whole = tmp_path / "run/2"
    rng, outcomes = np.random.default_rng(0), []
    largest = max((path for path in whole.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    files = sorted(path for path in whole.rglob("*") if path.is_file() and path.stat().st_size)
    for path in (*files[::every], *[largest] * flips):
        shutil.copytree(tmp_path / "run", tmp_path / "changed")
        changed = tmp_path / "changed" / path.relative_to(tmp_path / "run")
        data = bytearray(changed.read_bytes())
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        changed.write_bytes(data)
        with open_checkpoints(tmp_path / "changed") as checkpoints:
            restored = checkpoints.restore(lambda epoch: draw_state(0, wide))
        assert restored is not None
        epoch = len(restored.records)
        assert restored.records == draw_records(epoch)
        assert_same_bits(restored.state, states[epoch - 1])
        assert ("the checkpoint after step 2 is damaged" in capsys.readouterr().err) == (epoch == 1)
        outcomes.append(epoch)
        shutil.rmtree(tmp_path / "changed")
    assert outcomes[-flips:] == [1] * flips  # the weights themselves
    with open_checkpoints(tmp_path / "run") as checkpoints:
        restored = checkpoints.restore(lambda epoch: draw_state(0, wide))
    assert restored is not None
    assert_same_bits(restored.state, states[1])


def test_a_checkpoint_is_not_begun_where_too_little_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(draw_state(1), draw_records(1))
    monkeypatch.setattr("jaxcnn.weights.checkpoint.shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    told = rf"cannot write the checkpoints in {tmp_path}/run: No space left on device: "
    with pytest.raises(MachineError, match=told), open_checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(draw_state(2), draw_records(2))
    with open_checkpoints(tmp_path / "run") as checkpoints:
        restored = checkpoints.restore(lambda epoch: draw_state(0))
    assert restored is not None
    assert_same_bits(restored.state, draw_state(1))


def test_the_steps_of_an_epoch_in_hand_come_back_too(tmp_path: Path) -> None:
    part = Metrics(np.float32([0.1, 1e-45, 3e38]), np.int32([1, 2, 3]), np.int32([4, 4, 3]))
    asked = []
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(draw_state(21), draw_records(1))
        checkpoints.save(draw_state(24), draw_records(1), part)
    with open_checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(lambda epoch: asked.append(epoch) or draw_state(0))
    assert restored is not None
    assert asked == [1]
    assert restored.part is not None
    assert [np.asarray(got).tolist() for got in restored.part] == [values.tolist() for values in part]
    assert_same_bits(restored.state, draw_state(24))


@pytest.mark.parametrize("config", [MODEL, NO_NORM], ids=["batch norm", "none"])
def test_weights_and_their_configuration_come_back(config: ModelConfig, tmp_path: Path) -> None:
    torch.manual_seed(1)
    variables = from_torch(TorchCNN(config).state_dict(), config)
    save_weights(tmp_path / "a/weights", variables, config)
    restored, restored_config = load_weights(tmp_path / "a/weights")
    assert restored_config == config
    assert_same_bits(restored, variables)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(restored))


def test_weights_are_replaced_only_when_asked_to(tmp_path: Path) -> None:
    first = from_torch(TorchCNN(MODEL).state_dict(), MODEL)
    second = from_torch(TorchCNN(NO_NORM).state_dict(), NO_NORM)
    save_weights(tmp_path / "weights", first, MODEL)
    with pytest.raises(InputError, match="weights"):
        save_weights(tmp_path / "weights", second, NO_NORM)
    assert_same_bits(load_weights(tmp_path / "weights")[0], first)
    save_weights(tmp_path / "weights", second, NO_NORM, overwrite=True)
    restored, config = load_weights(tmp_path / "weights")
    assert_same_bits(restored, second)
    assert config == NO_NORM


def test_a_folder_that_holds_no_checkpoint_is_never_replaced(tmp_path: Path) -> None:
    variables = from_torch(TorchCNN(NO_NORM).state_dict(), NO_NORM)
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs/one.jpg").write_text("dear to somebody")
    with pytest.raises(InputError, match="photographs"):
        save_weights(tmp_path / "photographs", variables, NO_NORM, overwrite=True)
    assert (tmp_path / "photographs/one.jpg").read_text() == "dear to somebody"


def test_weights_are_not_written_where_they_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    variables = from_torch(TorchCNN(NO_NORM).state_dict(), NO_NORM)
    for place, kind in (("file", InputError), ("file/weights", MachineError)):
        with pytest.raises(kind, match="cannot write the checkpoint"):
            save_weights(tmp_path / place, variables, NO_NORM)


@pytest.mark.parametrize("damage", [truncate, remove("variables"), remove("model"), shutil.rmtree])
def test_weights_that_are_missing_or_damaged_are_refused(damage: Callable[[Path], None], tmp_path: Path) -> None:
    save_weights(tmp_path / "weights", from_torch(TorchCNN(MODEL).state_dict(), MODEL), MODEL)
    damage(tmp_path / "weights")
    with pytest.raises(InputError, match=rf"^{tmp_path}/weights holds no readable checkpoint"):
        load_weights(tmp_path / "weights")


@pytest.mark.slow
def test_other_folders_and_files_are_no_weights(tmp_path: Path) -> None:
    with open_checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(draw_state(1), draw_records(1))
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    for place in ("run", "run/1", "empty", "file"):
        with pytest.raises(InputError, match="holds no readable checkpoint"):
            load_weights(tmp_path / place)


def test_a_runs_own_checkpoints_are_weights_too(tmp_path: Path) -> None:
    states = {3: draw_state(3), 6: draw_state(6)}
    with open_checkpoints(tmp_path / "checkpoints") as checkpoints:
        for step, state in states.items():
            checkpoints.save(state, draw_records(step // 3))
    freeze = FreezeConfig(mask="partial", freeze_until_block=0)
    config = ExperimentConfig(model=MODEL, freeze=freeze)
    (tmp_path / "config.json").write_text(json.dumps(asdict(config), default=str))
    for given, step in (("checkpoints", 6), ("checkpoints/6", 6), ("checkpoints/3", 3)):
        variables, model = load_weights(tmp_path / given)
        assert model == MODEL
        assert_same_bits(variables, {"params": states[step].params, "batch_stats": states[step].batch_stats})
    with pytest.raises(InputError, match=r"has no checkpoint 4; there are 3, 6"):
        load_weights(tmp_path / "checkpoints" / "4")
    victim = max((tmp_path / "checkpoints" / "6" / "state").rglob("*"), key=lambda path: path.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"checkpoints/6 is damaged"):
        load_weights(tmp_path / "checkpoints")
    assert (tmp_path / "checkpoints" / "6").exists()  # nothing of the run's is touched


def test_a_replacement_that_fails_at_its_last_step_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = (from_torch(TorchCNN(MODEL).state_dict(), MODEL) for _ in range(2))
    save_weights(tmp_path / "weights", old, MODEL)
    replace_path = os.replace

    def fail_once(source: Path, target: Path) -> None:
        if Path(source).name == "new":
            raise OSError(5, "Input/output error")
        replace_path(source, target)

    monkeypatch.setattr(os, "replace", fail_once)
    with pytest.raises(MachineError, match=r"cannot write the checkpoint .*weights: .*Input/output error"):
        save_weights(tmp_path / "weights", new, MODEL, overwrite=True)
    monkeypatch.undo()
    assert_same_bits(load_weights(tmp_path / "weights")[0], old)
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
