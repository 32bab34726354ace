"""Kill training processes, continue the runs, and compare them bit by bit with uninterrupted runs.

    python -m experiments.checks.faults --kills 50 --terms 20

Every start is a new process, `python -m experiments.train` or `.transfer`, on scikit-learn's digits.

- SIGKILL comes at random times, or while a checkpoint is being written, which Orbax's temporary folder shows. Such a
kill
  counts as inside a checkpoint only if that folder still exists afterwards.
- SIGTERM comes at random times. The run must end with status 143, and the next start must continue at the step at which
  it stopped.
"""

import argparse
import contextlib
import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.checks.report import conclude

ROOT = Path(__file__).parent.parent.parent
NETWORK = (
    "--model.num-blocks 2 --model.hidden-dims 4 8 16 8 --model.layers-per-block 1 1 --model.apply-pooling 1 0 "
    "--model.apply-bn 1 1 --model.input-size 8 --model.in-channels 1 "
)
TRAIN = (
    "train --data.name digits --train.batch-size 64 --train.epochs 16 --optim.learning-rate 0.01 "
    "--optim.schedule plateau --train.early-stopping-patience 10 " + NETWORK
)
TRANSFER = "transfer --target digits --data.augment none --train.batch-size 64 --train.epochs 16 --source {source} "
SOURCE = "train --data.name digits --data.classes 0 1 2 3 4 --train.epochs 2 --train.batch-size 64 " + NETWORK
CASES = {
    "plateau": TRAIN + "--optim.plateau-patience 0",
    "early stopping": TRAIN + "--optim.optimizer adamw --train.early-stopping-patience 2 --optim.learning-rate 0.1",
    "cosine": TRAIN + "--optim.schedule cosine --optim.optimizer sgd --optim.warmup-epochs 2 --optim.clip-norm 1",
    "augmented": TRAIN
    + "--data.augment flipcrop --optim.label-smoothing 0.1 --model.in-channels 3 --data.fraction 0.5",
    "autoaugment": TRAIN + "--data.augment autoaugment --model.in-channels 3 --data.fraction 0.2 --data.validation 0",
    "frozen": TRANSFER + "--mask frozen",
    "gradual": TRANSFER + "--mask full --unfreeze-every 3 --optim.optimizer adamw",
    "probed": TRANSFER + "--mask partial --freeze-until-block 0 --probe-epochs 4 --layer-decay 0.7",
    "scratch": TRANSFER + "--mask scratch --seed 5",
}
TIMES = {"seconds", "images_per_second", "wall_seconds"}


@dataclass
class Report:
    kills: int = 0
    kills_inside_a_checkpoint: int = 0
    terms: int = 0
    finished_runs_compared: int = 0
    failures: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    seconds: float = 0


class Trial:
    """One run that is started, interrupted and started again until it is finished."""

    def __init__(self, words: list[str], folder: Path) -> None:
        self.folder = folder
        self.words = [sys.executable, "-m", f"experiments.{words[0]}", *words[1:]]
        self.words += ["--runs-dir", str(folder.parent), "--name", folder.name]
        self.said, self.complained = (folder.with_suffix(f".{name}") for name in ("out", "err"))
        self.position: str | None = "epoch 0"
        """The last position that the run printed; None if it is unknown after a kill."""

    def start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        with self.said.open("wb") as out, self.complained.open("wb") as err:
            return subprocess.Popen(self.words, cwd=ROOT, env=environment, stdout=out, stderr=err)

    def has_started(self) -> bool:
        """Whether the last start has printed something: it has loaded libraries and data."""
        return self.said.stat().st_size > 0

    def end(self, process: subprocess.Popen[bytes], wanted: int) -> list[str]:
        """Waits for the process; returns what is wrong with its status or output."""
        status = process.wait(timeout=120)
        out, err = self.said.read_text(), self.complained.read_text()
        wrong = []
        if status != wanted:
            wrong.append(f"status {status}, not {wanted}: {err.strip()[-300:]}")
        if "Traceback" in err:
            wrong.append(f"a traceback: {err.strip()[-300:]}")
        continued = re.search(r"^continuing after (.+)$", out, re.MULTILINE)
        positions = re.findall(r"^(?:stopping after (.+)|epoch +(\d+)/.*)$", out, re.MULTILINE)
        if continued or positions:
            first = continued[1] if continued else "epoch 0"
            if self.position not in (None, first):
                wrong.append(f"continued after {first}, not {self.position}")
            self.position = first
        for stopping, epoch in positions:
            self.position = stopping or f"epoch {epoch}"
        if wanted == -signal.SIGKILL and self.has_started():  # an epoch may be saved and not printed
            self.position = None
        return wrong

    def is_finished(self) -> bool:
        return (self.folder / "summary.json").exists()

    def temporary_folders(self) -> set[tuple[str, int]]:
        """Orbax's temporary folders, as (name, time of the last change). A kill leaves them behind."""
        found = set()
        for path in (self.folder / "checkpoints").glob("*.orbax-checkpoint-tmp*"):
            with contextlib.suppress(FileNotFoundError):
                found.add((path.name, path.stat().st_ctime_ns))
        return found


def wait(process: subprocess.Popen[bytes], seconds: float, until: Any = lambda: False) -> bool:
    """Waits until a condition is true; returns False if the time is over or the process ends before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if until():
            return True
        time.sleep(0.0005)
    return False


def interrupt(trial: Trial, kind: str, span: float, rng: random.Random) -> tuple[str | None, list[str]]:
    """Starts the run and sends a signal.

    Args:
        trial: the run.
        kind: "kill", "checkpoint" (a kill while a checkpoint is being written) or "term".
        span: latest time of the signal, in seconds after the start has printed something.
        rng: for the time.

    Returns:
        Where the signal interrupted the run, or None if it had already ended; and what is wrong with how it ended.
    """
    left_over = trial.temporary_folders()  # of an earlier kill
    process = trial.start()
    if kind == "checkpoint":
        for _ in range(rng.randint(1, 3)):  # which of the next checkpoints
            wait(process, 60, lambda: not trial.temporary_folders())
            wait(process, 60, trial.temporary_folders)
        time.sleep(rng.uniform(0, 0.004))
    elif rng.random() < 0.1:
        wait(process, rng.uniform(0, 4))  # while it loads libraries
    else:
        wait(process, 60, trial.has_started)
        wait(process, rng.uniform(0, span))
    if process.poll() is not None:
        return None, trial.end(process, 0)
    if kind != "term":
        process.kill()
        if process.wait(timeout=120) == 0:  # it had just ended
            return None, trial.end(process, 0)
        wrong = trial.end(process, -signal.SIGKILL)
        return ("inside a checkpoint" if trial.temporary_folders() - left_over else "elsewhere"), wrong
    process.terminate()
    sent = time.monotonic()
    process.wait(timeout=120)
    if process.returncode == -signal.SIGTERM and not trial.has_started():  # while Python was loading
        return "while loading", trial.end(process, -signal.SIGTERM)
    if process.returncode == -signal.SIGTERM and trial.is_finished():  # while Python was exiting
        return None, trial.end(process, -signal.SIGTERM)
    if process.returncode == 0 and time.monotonic() - sent < 0.5:  # it had almost ended
        return None, trial.end(process, 0)
    wrong = trial.end(process, 143)
    return f"at {trial.position}", wrong


def bits(folder: Path) -> dict[str, Any]:
    """Everything in a finished run's folder that must be the same after interruptions."""
    import torch

    found: dict[str, Any] = {"files": sorted({name(path, folder) for path in folder.rglob("*")} - {""})}
    for key, tensor in torch.load(folder / "model.pth", weights_only=True).items():
        found[f"model.pth {key}"] = (str(tensor.dtype), tensor.numpy().tobytes())
    with (folder / "metrics.csv").open(newline="") as file:
        found["metrics.csv"] = [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]
    for path in (folder / "results").iterdir():
        found[path.name] = np.load(path).tobytes()
    summary = json.loads((folder / "summary.json").read_text())
    found["summary.json"] = {k: v for k, v in summary.items() if k not in {*TIMES, "name"}}
    newest = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name))
    found["newest checkpoint"] = (newest.name, dict(arrays(newest)))
    logged = 0
    for log in folder.parent.glob("*.csv"):
        with log.open(newline="") as file:
            logged += sum(row["name"] == folder.name for row in csv.DictReader(file))
    found["rows in the table of all runs"] = logged
    return found


def name(path: Path, folder: Path) -> str:
    """A file's name within the run, without the parts that differ from run to run; empty for a part of a checkpoint."""
    parts = path.relative_to(folder).parts
    return "" if parts[0] == "checkpoints" and len(parts) > 1 else re.sub(r"events\..*", "events", "/".join(parts))


def arrays(checkpoint: Path) -> Iterator[tuple[str, bytes]]:
    import jax
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        state = checkpointer.restore(checkpoint / "state")
    for place, leaf in jax.tree_util.tree_leaves_with_path(state):
        yield jax.tree_util.keystr(place), np.asarray(leaf).tobytes()
    progress = json.loads((checkpoint / "progress" / "metadata").read_text())
    records = [{k: v for k, v in record.items() if k not in TIMES} for record in progress["records"]]
    yield "records", json.dumps([records, progress["part"]]).encode()


def plan(kills: int, terms: int, rng: random.Random) -> list[str]:
    """The interruptions in random order. Two of five kills come during a checkpoint."""
    inside = -(-2 * kills // 5)
    kinds = ["checkpoint"] * inside + ["kill"] * (kills - inside) + ["term"] * terms
    rng.shuffle(kinds)
    return kinds


def run(kills: int, terms: int, seed: int, cases: list[str], folder: Path) -> Report:
    report, rng, began = Report(), random.Random(seed), time.monotonic()
    source = folder / "source"
    if any("{source}" in CASES[case] for case in cases):
        Trial(SOURCE.split(), source).start().wait()
    kinds = plan(kills, terms, rng)
    for number, case in enumerate(cases):
        left = kinds[number :: len(cases)]
        words = CASES[case].format(source=source).split()
        whole = Trial(words, folder / f"{number}_whole")
        wrong = whole.end(whole.start(), 0)
        if wrong:
            report.failures.append(f"{case}, uninterrupted: {wrong}")
            continue
        wanted = bits(whole.folder)
        span = (whole.folder / "summary.json").stat().st_mtime - (whole.folder / "config.json").stat().st_mtime
        attempt = 0
        while left:
            attempt += 1
            trial = Trial(words, folder / f"{number}_hit_{attempt}")
            done, where = [], None
            while left and not trial.is_finished():
                kind = left.pop()
                where, wrong = interrupt(trial, kind, span, rng)
                report.failures += [f"{case}, {kind}: {each}" for each in wrong]
                if where is None:  # too late: try again in another run, sooner, because programs are compiled now
                    left.append(kind)
                    span *= 0.6
                    break
                done.append(f"{kind} {where}")
                report.terms += kind == "term"
                report.kills += kind != "term"
                report.kills_inside_a_checkpoint += where == "inside a checkpoint"
            if where is not None or not trial.is_finished():  # perhaps interrupted between summary and plots
                report.failures += [f"{case}, last start: {each}" for each in trial.end(trial.start(), 0)]
            report.log.append(f"{case}: {'; '.join(done)}")
            print(report.log[-1], file=sys.stderr, flush=True)
            if trial.is_finished():
                found = bits(trial.folder)
                differ = [key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)]
                report.failures += [f"{case}: {key} differs" for key in differ]
                report.finished_runs_compared += 1
    if report.kills_inside_a_checkpoint < kills // 5:
        report.failures.append(f"only {report.kills_inside_a_checkpoint} kills hit a checkpoint being written")
    report.seconds = round(time.monotonic() - began, 1)
    return report


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m experiments.checks.faults", description=__doc__.partition("\n")[0])
    made.add_argument("--kills", type=int, default=50, help="how many SIGKILLs (default: 50)")
    made.add_argument("--terms", type=int, default=20, help="how many SIGTERMs (default: 20)")
    made.add_argument("--seed", type=int, default=0, help="seed of the times (default: 0)")
    made.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="which configurations")
    made.add_argument("--json", action="store_true", help="print the report as JSON")
    return made


def main(argv: list[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="jaxcnn-faults-") as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"  # one cache of compiled programs for all starts
        report = run(flags.kills, flags.terms, flags.seed, flags.cases, Path(folder))
    text = (
        f"{report.kills} SIGKILLs, {report.kills_inside_a_checkpoint} of them inside a checkpoint being written, and "
        f"{report.terms} SIGTERMs in {len(flags.cases)} configurations; {report.finished_runs_compared} runs compared "
        "with uninterrupted ones"
    )
    return conclude(report, text, flags.json)


if __name__ == "__main__":
    raise SystemExit(main())
