"""Several devices give what one gives. They are forced devices of the CPU, in new processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxcnn.config import DataConfig
from jaxcnn.data.sets import load_dataset
from jaxcnn.data.splits import ImageRows
from jaxcnn.errors import InputError
from jaxcnn.training import devices
from jaxcnn.training.devices import image_limit, make_mesh

PROGRAM = Path(__file__).parent / "devices_program.py"


def start(*arguments: str, forced: int, x64: bool = True) -> subprocess.Popen[str]:
    setting = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={forced}",
        "JAX_ENABLE_X64": str(int(x64)),
        "JAX_PLATFORMS": "cpu",
    }
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *arguments],
        env={**os.environ, **setting},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


@pytest.mark.slow
def test_eight_devices_of_one_process_or_of_two_give_the_weights_of_one_device() -> None:
    found = result(start("8", "--cases", "full", "frozen", forced=8))
    assert found.pop("streamed") == 0
    alone = {case: found.pop(f"{case} alone") for case in ("full", "frozen")}
    assert set(found) == {"full on 8", "frozen on 8"}
    assert max(found.values()) < 1e-11
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    words = ("--cases", "full", "--of", "2", "--port", str(port))
    both = [result(process) for process in [start(*words, "--process", str(i), forced=4) for i in range(2)]]
    assert both[0] == both[1]
    np.testing.assert_allclose(both[0]["full"], alone["full"], rtol=0, atol=1e-10)  # sums of many weights


@pytest.mark.slow
@pytest.mark.extra
def test_a_network_of_ones_own_trains_on_devices_that_divide_the_batch() -> None:
    found = result(start("--own", "8", "4", forced=8))
    assert found.pop("refused") == (
        "train.batch_size=12 is not usable: with a network or an augmentation of your own, the 8 devices must divide it"
    )
    assert found.pop("own network") < 1e-6  # flax's modules compute in float32
    assert not found


@pytest.mark.slow
@pytest.mark.extra
def test_every_number_of_devices_gives_the_weights_of_one_device() -> None:
    found = result(start("2", "4", "--cases", "unfreezing", "partial", forced=4))
    assert max(value for name, value in found.items() if "alone" not in name) < 1e-11


@pytest.mark.slow
@pytest.mark.extra
def test_the_same_in_single_precision() -> None:
    found = result(start("8", "--cases", "full", forced=8, x64=False))
    assert found.pop("streamed") == 0
    assert max(value for name, value in found.items() if "alone" not in name) < 1e-5  # after 24 steps


@pytest.mark.slow
@pytest.mark.extra
def test_a_run_continues_on_another_number_of_devices() -> None:
    found = result(start("--continue", "4", "2", forced=4))
    assert found["far"] < 1e-6  # files hold float32
    assert "rounding may differ: devices was 4, is 2" in found["printed"]


def test_more_devices_than_there_are_cannot_be_used() -> None:
    with pytest.raises(InputError, match=r"^devices=64 is not usable: this process has 1; XLA_FLAGS="):
        make_mesh(64)
    assert make_mesh() is None
    assert make_mesh(1) is None


def test_images_beyond_the_limit_stay_where_they_are() -> None:
    config = DataConfig(name="digits", fraction=0.5)
    inside = load_dataset(config, input_size=8, in_channels=1, seed=1)
    outside = load_dataset(config, input_size=8, in_channels=1, seed=1, most_bytes=0)
    for kept, rows in ((inside.train, outside.train), (inside.validation, outside.validation)):
        assert kept is not None
        assert rows is not None
        assert isinstance(rows.images, ImageRows)
        assert (rows.images.shape, rows.images.dtype, rows.images.nbytes) == (
            kept.images.shape,
            kept.images.dtype,
            kept.images.nbytes,
        )
        np.testing.assert_array_equal(rows.images[np.arange(len(kept.labels))], kept.images)
        np.testing.assert_array_equal(rows.images[[[3, 1], [0, 2]]], kept.images[[[3, 1], [0, 2]]])
        np.testing.assert_array_equal(rows.labels, kept.labels)


def test_half_of_a_devices_memory_may_hold_images(monkeypatch: pytest.MonkeyPatch) -> None:
    class Device:
        def memory_stats(self) -> dict[str, int]:
            return {"bytes_limit": 1000}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert image_limit() == 500
    monkeypatch.setattr(Device, "memory_stats", lambda self: None)
    monkeypatch.setattr(devices, "_host_memory", lambda: 300)
    assert image_limit() == 150
