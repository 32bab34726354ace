"""The command lines: what they accept, what they refuse, and how they end."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pytest
from refusals import message

import jaxcnn
from jaxcnn.cli import train as train_program
from jaxcnn.cli.flags import baseline, parse, prog
from jaxcnn.cli.main import console, main
from jaxcnn.config import DEEP, SHALLOW, DataConfig, ExperimentConfig, OptimConfig, TrainConfig
from jaxcnn.config.experiment import RESOLVED
from jaxcnn.runs.device import select_device

ROOT = Path(__file__).parent.parent
PROGRAMS = (
    *("train", "cifar10", "cifar100", "svhn", "baselines", "transfer", "predict", "convert", "publish", "report"),
    *("quickstart", "bench", "bundle"),
)
SLOW_MODULES = ("jax", "flax", "torch", "tensorflow_datasets", "sklearn", "scipy", "matplotlib", "orbax")


class Ended(NamedTuple):
    status: Any
    out: str
    err: str


def run(program: Callable[[], object]) -> Ended:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    status: Any = 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            program()
        except SystemExit as error:
            status = error.code
    return Ended(status, *(stream.buffer.getvalue().decode() for stream in (out, err)))


def train(monkeypatch: pytest.MonkeyPatch, *argv: str, data: str = "digits") -> Ended:
    """What `python -m experiments.NAME` does, in this process."""
    monkeypatch.setattr(sys, "argv", ["train", *argv])
    return run(lambda: main(lambda: train_program.program(argv, data)))


def command(*argv: str, cwd: Path, python: tuple[str, ...] = (), **environment: str) -> Ended:
    ended = subprocess.run(
        [sys.executable, *python, *argv],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cwd / ".cache"), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def squeezed(text: str) -> str:
    """Without the frames and line breaks that a narrow terminal puts into long words."""
    return re.sub(r"[\s│╭╮╰╯─]", "", text)


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def parsed(*argv: str, data: str = "cifar10") -> ExperimentConfig:
    return parse(baseline(data), "Train.", list(argv))[0]


pytestmark = pytest.mark.usefixtures("isolated")


def test_a_reader_that_has_seen_enough_ends_the_program(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "experiments.cifar10", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, cwd=tmp_path, env=environment, check=False)
    os.close(writing)
    assert done.returncode == 141
    assert done.stderr == b""


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_of_what_is_shown_ends_the_program(tmp_path: Path) -> None:
    source = ROOT / "tests/reference/small/model.pth"
    words = [sys.executable, "-m", "experiments.convert", str(source), "weights.safetensors"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, cwd=tmp_path, env=environment, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


# --help


def test_help_of_cifar10_loads_no_library_that_is_slow_to_load(tmp_path: Path) -> None:
    ended = command("-m", "experiments.cifar10", "--help", cwd=tmp_path, python=("-X", "importtime"))
    assert ended.status == 0
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in ended.err.splitlines()}
    assert {"experiments", "jaxcnn", "tyro"} <= loaded
    assert not loaded & set(SLOW_MODULES)
    for flag in ("--name", "--runs-dir", "--seed", "--config", "--overwrite", "--data.archives", "--model.preset"):
        assert flag in ended.out
    assert contents(tmp_path) == {}


def test_help_of_no_program_loads_a_library_that_is_slow_to_load(tmp_path: Path) -> None:
    probe = f"""
import contextlib, io, runpy, sys
for name in {PROGRAMS!r}:
    sys.argv, out = [name, "--help"], io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            runpy.run_module(f"experiments.{{name}}", run_name="__main__")
    except SystemExit as error:
        assert error.code in (0, None), (name, error.code)
    assert out.getvalue().startswith(f"usage: python -m experiments.{{name}} "), name
    print(name, *sorted(set({SLOW_MODULES!r}) & set(sys.modules)))
"""
    ended = command("-c", probe, cwd=tmp_path)
    assert ended.err == ""
    assert ended.out.split() == list(PROGRAMS)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/there/experiments/quickstart.py", "quickstart"),
        ("/there/experiments/bench/__main__.py", "bench"),
        ("experiments/baselines.py", "baselines"),
        ("/with.dots/experiments/convert.py", "convert"),
    ],
)
def test_help_names_the_program_as_it_is_called(path: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [path, "--help"])
    assert prog() == f"python -m experiments.{name}"


# Flags


def test_the_digits_have_settings_of_their_own() -> None:
    for words in (
        ["--data.name", "digits"],
        ["--data.name=digits", "--seed", "1"],
        ["--data.name", "svhn", "--data.name", "digits"],
    ):
        assert train_program.default_for(words) == train_program.DIGITS
    for words in ([], ["--data.name", "svhn"], ["--name", "digits"]):
        assert train_program.default_for(words) == train_program.DEFAULT


def test_the_flags_that_scripts_lean_on_set_what_they_say() -> None:
    config = parsed(
        *("--name", "mine", "--runs-dir", "there", "--seed", "7", "--device", "cpu"),
        *("--data.name", "svhn", "--data.dir", "sets", "--data.archives", "archives", "--data.augment", "flipcrop"),
        *("--data.classes", "3", "5", "--data.fraction", "0.5", "--data.validation", "0.2"),
        *("--model.preset", "deep", "--train.epochs", "3", "--train.batch-size", "64"),
        *("--optim.learning-rate", "0.01", "--optim.schedule", "cosine"),
    )
    assert config == ExperimentConfig(
        name="mine",
        runs_dir=Path("there"),
        seed=7,
        device="cpu",
        data=DataConfig("svhn", Path("sets"), Path("archives"), "flipcrop", (3, 5), 0.5, 0.2),
        model=DEEP,
        optim=OptimConfig(learning_rate=0.01, schedule="cosine"),
        train=TrainConfig(epochs=3, batch_size=64),
    )


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_the_programs_defaults_are_the_originals(name: str) -> None:
    config = parsed(data=name)
    assert (config.run_name, config.data.name, config.data.augment) == (name, name, "autoaugment")
    assert (config.train.epochs, config.train.batch_size) == (200, 256)
    assert (config.train.early_stopping_patience, config.train.early_stopping_target) == (10, 98.5)
    optim = config.optim
    assert (optim.optimizer, optim.learning_rate, optim.weight_decay) == ("adam", 1e-3, 1e-5)
    assert (optim.schedule, optim.plateau_factor, optim.plateau_patience) == ("plateau", 0.5, 5)
    assert config.model == SHALLOW
    assert config.model.dropout_rate == 0.2
    assert parse(baseline(name), "Train.", ["--overwrite"])[1].overwrite
    assert parse(baseline(name), "Train.", [])[1] == (False, False)


@pytest.mark.parametrize("program", ["cifar10", "cifar100", "svhn"])
def test_each_program_begins_with_its_own_data_set(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (ROOT / "experiments" / f"{program}.py").read_text()
    seen: list[ExperimentConfig] = []
    monkeypatch.setattr("jaxcnn.runs.run.run_experiment", lambda config, existing: seen.append(config))
    monkeypatch.setattr(sys, "argv", [program])
    exec(compile(source, program, "exec"), {"__name__": "__main__"})
    assert seen == [baseline(program)]


def test_other_model_flags_change_a_preset() -> None:
    assert parsed("--model.preset", "deep").model == DEEP
    assert parsed("--model.preset=deep", "--model.dropout-rate", "0").model == replace(DEEP, dropout_rate=0.0)
    assert parsed("--model.dropout-rate", "0", "--model.preset", "deep").model == replace(DEEP, dropout_rate=0.0)


def test_sequences_of_flags_are_given_as_ones_and_zeros() -> None:
    config = parsed("--model.apply-bn", "1", "1", "1", "1", "--model.layers-per-block", "2", "1", "1", "1")
    assert config.model == replace(SHALLOW, apply_bn=(1, 1, 1, 1), layers_per_block=(2, 1, 1, 1))


def test_limits_can_be_taken_away() -> None:
    train = parsed("--train.early-stopping-patience", "None", "--train.early-stopping-target", "None").train
    assert train == TrainConfig(early_stopping_patience=None, early_stopping_target=None)


# Refusals


@pytest.mark.slow
@pytest.mark.parametrize("device", ["gpu", "tpu"])
def test_a_device_that_the_machine_lacks_is_refused(device: str, tmp_path: Path) -> None:
    argv = ("-m", "experiments.train", "--data.name", "digits", "--device", device)
    status, out, err = command(*argv, cwd=tmp_path, JAX_PLATFORMS="")
    if status == 0:  # there is one, which then has to be the one that was used
        used = json.loads((tmp_path / "runs/digits/config.json").read_text())[RESOLVED]["device"]
        assert used != "cpu"
        return
    assert (status, out) == (2, "")
    assert f"error: device='{device}'" in err
    assert ("cuda12" in err) == (device == "gpu")
    assert "Traceback" not in err
    assert "runs" not in contents(tmp_path)


@pytest.mark.parametrize("device", ["gpu", "tpu"])
def test_a_device_that_jax_does_not_find_is_refused(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("Unknown backend: none of the platforms is here\nand more")

    monkeypatch.setattr(jax, "devices", fail)
    told = message(lambda: select_device(device))
    assert told.startswith(f"device={device!r} is not available: Unknown backend")
    assert ("cuda12" in told) == (device == "gpu")


@pytest.mark.parametrize(
    ("program", "flags", "named"),
    [
        ("svhn", "--train.epochs 0", "train.epochs=0"),
        *(
            pytest.param(*words, marks=pytest.mark.slow)
            for words in (
                ("cifar100", "--config missing.json", "missing.json"),
                ("baselines", "--train.epochs x", "--train.epochs"),
                ("convert", "missing.pth out.pth", "missing.pth"),
                ("convert", "only_one", "A .pth or .safetensors file"),
            )
        ),
    ],
)
def test_every_program_refuses_bad_input_the_same_way(program: str, flags: str, named: str, tmp_path: Path) -> None:
    status, out, err = command("-m", f"experiments.{program}", *flags.split(), cwd=tmp_path)
    assert (status, out) == (2, "")
    assert named.lower() in err.lower()
    assert "Traceback" not in err
    assert set(contents(tmp_path)) <= {".cache"}


def test_an_interrupt_ends_in_status_130_and_one_line() -> None:
    def program() -> None:
        raise KeyboardInterrupt

    status, out, err = run(lambda: main(program))
    assert (status, out, err.count("\n")) == (130, "", 1)


def test_a_mistake_in_the_program_is_not_passed_off_as_bad_input() -> None:
    def program() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main(program)


def test_the_console_script_finds_its_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    def called(*words: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["jaxcnn", *words])
        return run(console)

    assert called("--version") == (0, f"jaxcnn {jaxcnn.__version__}\n", "")
    assert called() == called("--help")
    assert {line.split()[0] for line in called("-h").out.splitlines()[5:]} >= set(PROGRAMS) - {"bench", "bundle"}
    status, _, err = called("teach")
    assert status == 2
    assert err.startswith("error: there is no program 'teach'; there are train, ")
    status, _, err = called("train", "--train.epochs", "0")
    assert status == 2
    assert "epochs" in err
