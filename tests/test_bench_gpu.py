"""The benchmark's rows for a GPU, tried on the CPU: each program runs in every form. No time is asserted."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch

from experiments.bench import __main__ as program
from experiments.bench import gpu, jax_program, machine, processes, rows
from experiments.bench.forms import GPU_FORMS
from experiments.bench.measure import usable
from experiments.bench.pytorch_device import Stored, flipcrop, stored_images
from experiments.bench.pytorch_program import EAGER, float32_products, in_memory
from experiments.bench.setting import Setting, load_images
from jaxcnn import InputError, ModelConfig
from jaxcnn.cli.main import main
from jaxcnn.config import PRESETS

SMALL = ModelConfig(
    hidden_dims=(4, 8, 12, 8),
    layers_per_block=(1, 1),
    apply_pooling=(1, 1),
    apply_bn=(1, 0),
    num_blocks=2,
    dropout_rate=0.2,
)
TINY = Setting(batch_size=4, rounds=1, steps=2, images=6)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small network, and no compilation by PyTorch, which takes long."""
    monkeypatch.setitem(PRESETS, "shallow", SMALL)
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)  # it imports the compiler
    for column in [column for column, form in GPU_FORMS.items() if form.compiled]:
        monkeypatch.delitem(GPU_FORMS, column)


def test_every_promised_row_is_there() -> None:
    names = [name for group in gpu.groups() for name in group.names]
    assert len(names) == len(set(names))
    assert {"step_full", "step_full_2048", "epoch_autoaugment", "epoch_flipcrop", "epoch_frozen_cached"} <= set(names)
    assert {"augment_flipcrop", "augment_autoaugment", "first_step_cold", "first_step_warm", "peak_memory"} <= set(
        names
    )
    assert {(form.tf32, form.bfloat16, form.compiled, form.graphs) for form in GPU_FORMS.values()} >= {
        (False, False, False, False),
        (True, False, False, False),
        (False, True, False, False),
        (False, True, True, False),
        (False, True, True, True),
    }


@pytest.mark.usefixtures("small")
def test_a_program_that_fails_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(gpu, "loaded", fail)
    monkeypatch.setattr(jax_program, "stored_augmentation", lambda setting, kind: lambda: None)
    flipped, augmented = gpu.augment_rows(TINY, lambda name: False)
    assert (flipped.name, flipped.note) == ("augment_flipcrop", "")
    assert {column: len(values) for column, values in flipped.values.items()} == {"jaxcnn": 1, "pytorch": 1}
    assert augmented.note == "pytorch not timed: RuntimeError: out of memory"
    assert set(augmented.values) == {"jaxcnn"}
    assert augmented.ratio is None
    assert [row.name for row in gpu.augment_rows(TINY, lambda name: name != "augment_flipcrop")] == ["augment_flipcrop"]


@pytest.mark.slow
@pytest.mark.extra
@pytest.mark.usefixtures("small")
def test_every_row_runs_and_steps_in_every_form_that_a_cpu_has(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {"jaxcnn", "jaxcnn_tf32", "jaxcnn_bf16"}
    for group in gpu.groups()[:-1]:  # the last one starts processes
        if group.names == ("step_full_2048",):
            continue  # it is `step_full` with another size
        for row in group.measure(TINY, lambda name: False):
            assert row.name in group.names
            assert row.note == ""
            theirs = set(gpu.LOADED) if "autoaugment" in row.name else set(GPU_FORMS)
            expected = {"jaxcnn", "pytorch"} if row.name.startswith("augment") else ours | theirs
            assert set(row.values) == expected, row.name
            assert all(len(values) == 1 and values[0] > 0 for values in row.values.values())
        if group.names == ("step_full",):  # the other rows take the forms from the same function
            monkeypatch.setattr(gpu, "jax_forms", lambda make: {"jaxcnn": partial(make, "bfloat16")})
            ours = {"jaxcnn"}


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_the_large_batch_has_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "LARGE_BATCH", 6)
    monkeypatch.setattr(gpu, "jax_forms", lambda make: {})
    (large,) = (group for group in gpu.groups() if group.names == ("step_full_6",))
    (row,) = large.measure(TINY, lambda name: False)
    assert (row.name, set(row.values)) == ("step_full_6", set(GPU_FORMS))
    assert "batch 6," in row.what


def test_a_start_is_timed_with_empty_caches_and_then_with_filled_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, Path]] = []

    def run_child(do: str, setting: Setting, cache: Path, program: str) -> dict[str, Any]:
        assert do == "first_step"
        if program == "pytorch_bf16_compiled":
            raise InputError("the process failed: no compiler")
        seen.append((program, cache))
        return {"seconds": float(len(list(cache.iterdir()))), "peak_device_mib": (cache / "filled").touch() or 7.0}

    monkeypatch.setattr(processes, "run_child", run_child)
    cold, warm, memory = gpu.start_rows(TINY, lambda name: False)
    assert (cold.name, warm.name, memory.name) == ("first_step_cold", "first_step_warm", "peak_memory")
    assert (cold.values["jaxcnn"], warm.values["jaxcnn"], memory.values["jaxcnn_bf16"]) == ([0.0], [1.0], [7.0])
    assert cold.values["pytorch_bf16_compiled"] == []
    assert cold.note == "pytorch bf16 compiled not timed: the process failed: no compiler"
    assert len(seen) == 2 * 3


@pytest.mark.slow
@pytest.mark.extra
def test_a_process_of_its_own_starts_in_another_form(tmp_path: Path) -> None:
    for column in ("jaxcnn_bf16", "pytorch_bf16"):
        answer = processes.run_child("first_step", TINY, tmp_path, column)
        assert answer["seconds"] > 0
        assert answer["peak_device_mib"] is None  # a CPU does not count its memory


def test_the_setting_of_a_cpu_is_what_older_checkouts_know() -> None:
    assert "device" not in TINY.to_dict()
    on_gpu = Setting(device="gpu")
    assert Setting(**on_gpu.to_dict()) == on_gpu
    assert on_gpu.work()["device"] == "gpu"
    with pytest.raises(InputError, match="names no row; there are step_full, step_full_2048"):
        next(rows.measure(on_gpu, ["evaluate"]))


def test_amounts_suit_the_device_unless_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    (cpu,) = program.make_settings(program.Flags())
    (on_gpu,) = program.make_settings(program.Flags(device="gpu"))
    (given,) = program.make_settings(program.Flags(device="gpu", steps=3, images=5))
    assert (cpu.steps, cpu.images, cpu.device) == (4, 1_024, "cpu")
    assert (on_gpu.steps, on_gpu.images, on_gpu.device) == (64, 50_000, "gpu")
    assert (given.steps, given.images) == (3, 5)
    with pytest.raises(InputError, match="steps=0"):
        program.make_settings(program.Flags(steps=0))


@pytest.mark.parametrize("against", [None, Path()])
def test_a_machine_without_a_gpu_ends_in_one_message(
    against: Path | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise RuntimeError("Unknown backend cuda")

    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "true")
    monkeypatch.setattr(jax, "devices", fail)
    platforms = jax.config.jax_platforms
    with pytest.raises(SystemExit) as caught:
        main(lambda: program.run(program.Flags(device="gpu", against=against)))
    jax.config.update("jax_platforms", platforms)
    assert caught.value.code == 2
    assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "true"  # the user's own
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert ("leave it out with --against" if against else "install jaxcnn[cuda13]") in line


def test_batches_of_stored_images_have_one_size_and_every_image() -> None:
    split = load_images(TINY, 10)
    stored = Stored(torch.arange(10), torch.arange(10), 4)
    seen = [tuple(part.tolist() for part in batch) for batch in stored]
    assert [len(labels) for _, labels in seen] == [4, 4, 4]
    assert {image for images, _ in seen for image in images} == set(range(10))
    assert all(images == labels for images, labels in seen)
    assert [len(labels) for _, labels in Stored(torch.zeros(3), torch.zeros(3), 8)] == [8]
    (images, labels), *_ = stored_images(split, 10, "cpu")
    ((expected, theirs),) = in_memory(split, 10)
    order = [int((expected == image).flatten(1).all(1).nonzero()) for image in images]
    assert torch.equal(labels, theirs[order])


def test_flip_and_crop_shifts_and_mirrors_each_image_by_itself() -> None:
    torch.manual_seed(0)
    image = np.arange(1, 1 + 3 * 32 * 32).reshape(3, 32, 32) % 251 + 1
    images = torch.from_numpy(image.astype(np.uint8)).repeat(400, 1, 1, 1)
    padded = np.pad(images[0].numpy(), ((0, 0), (4, 4), (4, 4)))
    crops = {
        (row, column, mirrored): np.flip(crop, 2) if mirrored else crop
        for row in range(9)
        for column in range(9)
        for crop in [padded[:, row : row + 32, column : column + 32]]
        for mirrored in (False, True)
    }
    known = {crop.tobytes(): key for key, crop in crops.items()}
    drawn = [known[each.numpy().tobytes()] for each in flipcrop(images)]
    for i, values in enumerate((set(range(9)), set(range(9)), {False, True})):
        assert {key[i] for key in drawn} == values
    assert len(set(drawn)) > 100  # of 162


@pytest.mark.filterwarnings("ignore")  # newer releases of PyTorch have other names for these settings
def test_the_settings_for_tf32_hold_for_one_form() -> None:
    def read() -> tuple[Any, ...]:
        cudnn = torch.backends.cudnn
        return torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark

    before = read()
    with float32_products(GPU_FORMS["pytorch_tf32"]):
        assert read() == ("high", True, True)
        with float32_products(EAGER):
            assert read() == ("highest", False, True)
    assert read() == before
    seen = []
    jax_program.with_tf32(lambda: seen.append(jax.config.jax_default_matmul_precision))()
    assert seen == ["tensorfloat32"]


def test_a_failure_without_a_message_is_named_by_its_type() -> None:
    def fail() -> Any:
        raise MemoryError

    programs, note = usable({"jaxcnn": lambda: lambda: None, "pytorch": fail, "pytorch_bf16": lambda: fail})
    assert list(programs) == ["jaxcnn"]
    assert note == "pytorch not timed: MemoryError; pytorch bf16 not timed: MemoryError"
    turns = iter([None, None, None])  # the trial, and the warm-up and the round of the first program
    (row,) = gpu.timed(
        "a", "", {"jaxcnn": lambda: lambda: next(turns), "pytorch": lambda: lambda: next(turns)}, TINY, 8
    )
    assert (row.values, row.note) == ({}, "all not timed: StopIteration")


def test_the_card_is_named_with_its_driver_and_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "NVIDIA X$1, 580.1, 80000 MiB, 700.00 W"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3")
    assert machine.query_gpu(1)["name"] == "NVIDIA X--id=3"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    found = machine.query_gpu(0)
    assert found == {"name": "NVIDIA X--id=0", "driver": "580.1", "memory": "80000 MiB", "power_limit": "700.00 W"}
    kept = {**found, "torch_cuda": "13.0", "cuda_packages": {"jax-cuda13-plugin": "0.11.2"}}
    told = machine.where({**machine.facts(), "gpu": kept})
    card = "NVIDIA X--id=0 (80000 MiB, driver 580.1, CUDA 13.0 in torch, jax-cuda13-plugin 0.11.2), with "
    assert told.startswith(card)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert machine.query_gpu(0) == {}
    facts = machine.facts("gpu")["gpu"]
    assert {"name", "torch_cuda", "cuda_packages"} <= set(facts)
    assert machine.accelerator({"gpu": facts}).endswith(", with ")
