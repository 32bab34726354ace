"""Progress and results of a run on the terminal."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from jaxcnn.config.experiment import ExperimentConfig
from jaxcnn.data.splits import Dataset
from jaxcnn.masks import frozen_stages, settled_epoch
from jaxcnn.runs.notebook import open_cell_bar
from jaxcnn.runs.summary import Summary
from jaxcnn.training.features import caches_features, feature_bytes
from jaxcnn.training.records import EpochRecord, Metrics

_MOST_COUNTS = 20  # maximum number of classes in the line of image counts
_WIDTH = 80  # maximum width of an epoch's line


class Bar:
    """Prints a line per epoch. On a terminal or in a notebook, also shows a progress bar for the current epoch."""

    def __init__(self, console: Console, epochs: int, images: int, done: int, behind: int) -> None:
        """Prepares the bar.

        Args:
            console: where to print.
            epochs: number of epochs of the run.
            images: number of training images per epoch.
            done: number of finished epochs.
            behind: number of images already seen in the current epoch, when a run continues within one.
        """
        self._console, self._epochs, self._images, self._done, self._behind = console, epochs, images, done, behind
        self._since: tuple[float, int] | None = None
        """(time, images seen by the run) after the first compiled step, from which the remaining time is estimated."""
        self._epoch_since = (0.0, 0)
        """The same at the start of the epoch, for images per second."""
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[numbers]}"),
            console=console,
            transient=True,
            # With FORCE_COLOR, rich takes any file for a terminal. A file should not get a bar.
            disable=not (console.is_interactive and console.file.isatty()),
        )
        self._cell = open_cell_bar()
        self._task = self._bar.add_task("", total=images, completed=behind, **self._fields())
        self.show_compiling()

    def _fields(self) -> dict[str, Any]:
        """The fields of the bar at the start of an epoch. After the last epoch the bar is hidden."""
        return {"visible": self._done < self._epochs, "epoch": self._done + 1, "epochs": self._epochs, "numbers": ""}

    def __enter__(self) -> "Bar":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._cell is not None:
            self._cell.close()

    def show_compiling(self) -> None:
        """Shows that the next step will be compiled. Its time does not count for the estimates."""
        self._since = None
        self._bar.update(self._task, numbers="compiling")

    def step(self, seen: int, total: Metrics) -> None:
        """Updates the bar.

        Args:
            seen: images seen in this epoch since the run started or continued.
            total: metrics summed over these images.
        """
        now = time.perf_counter()
        reached = self._done * self._images + self._behind + seen
        numbers = f"loss {total.loss / total.count:.4f}  {100 * total.correct / total.count:.2f}%"
        if self._since is None:
            self._since = self._epoch_since = now, reached
        else:
            (began, before), (epoch_began, epoch_before) = self._since, self._epoch_since
            rate = (reached - epoch_before) / (now - epoch_began)
            left = (now - began) / (reached - before) * (self._epochs * self._images - reached)
            numbers += f"  {rate:,.0f} images/s  {_clock(left)} left"
        self._bar.update(self._task, completed=self._behind + seen, numbers=numbers)
        if self._cell is not None:
            text = f"epoch {self._done + 1}/{self._epochs}  {numbers}"
            self._cell.show((self._behind + seen) / self._images, text)

    def epoch(self, record: EpochRecord, *, is_best: bool) -> None:
        """Prints the line of a finished epoch."""
        self._done, self._behind = record.epoch, 0
        self._epoch_since = time.perf_counter(), record.epoch * self._images
        self._console.print(_line(record, self._epochs, is_best), markup=False, highlight=False)
        self._bar.reset(self._task, total=self._images, **self._fields())


def _line(record: EpochRecord, epochs: int, is_best: bool) -> str:
    parts = [
        f"epoch {record.epoch:{len(str(epochs))}}/{epochs}",
        f"train {record.train_loss:.4f} {record.train_accuracy:6.2f}%",
    ]
    if record.val_loss is not None:
        parts.append(f"val {record.val_loss:.4f} {record.val_accuracy:6.2f}%")
    parts += [f"lr {record.learning_rate:.2g}", f"{record.seconds:.{1 if record.seconds < 100 else 0}f}s"]
    gap = "  " if len("  ".join([*parts, "best"])) <= _WIDTH else " "  # the same for all epochs of a run
    return gap.join([*parts, "best"] if is_best else parts)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def print_turn(console: Console, number: int, total: int, name: str) -> None:
    """Prints the number and name of the next of several runs."""
    console.print(f"run {number} of {total}: {name}", markup=False, highlight=False)


def print_start(
    console: Console,
    folder: Path,
    config: ExperimentConfig,
    dataset: Dataset,
    counts: Sequence[tuple[str, int, bool]],
) -> None:
    """Prints the data set, the device and the parameters of a run; `counts` comes from `masks.count_parameters`."""
    validation = 0 if dataset.validation is None else len(dataset.validation.labels)
    console.print(
        Text.assemble(  # not markup, which cannot escape every possible name
            (str(folder), "bold"),
            f": {dataset.name}, {dataset.num_classes} classes, "
            f"{len(dataset.train.labels):,} training, {validation:,} validation, {len(dataset.test.labels):,} test "
            f"images; augmentation {config.data.augment}; seed {config.seed}; on {jax.devices()[0].device_kind}",
        ),
        highlight=False,
    )
    if line := _class_counts(dataset):
        console.print(line, markup=False, highlight=False)
    trained, total = sum(count for _, count, trains in counts if trains), sum(count for _, count, _ in counts)
    parts = ", ".join(f"{name} {count:,}{'' if trains else ' (frozen)'}" for name, count, trains in counts)
    console.print(f"trains {trained:,} of {total:,} parameters: {parts}", highlight=False)
    settled = settled_epoch(config.freeze, config.model)
    if settled >= config.train.epochs:
        console.print(f"more than {settled} epochs would be needed to train all that is not frozen for good")
    phases = {frozen_stages(config.freeze, config.model, e) for e in range(min(settled + 1, config.train.epochs))}
    kept = [feature_bytes(config, dataset, f) for f in phases if caches_features(config, dataset, f)]
    if kept:
        size = max(kept) / 2**20
        console.print(f"the output of the frozen stages is computed once and kept: {size:,.0f} MiB", highlight=False)


def _class_counts(dataset: Dataset) -> str:
    """A line with the number of training images per class; empty unless one has 1.5 times as many as another."""
    counts = np.bincount(dataset.train.labels, minlength=dataset.num_classes)
    if counts.max() < 1.5 * counts.min():
        return ""
    order: Sequence[int] = range(dataset.num_classes)
    if dataset.num_classes > _MOST_COUNTS:
        ordered = np.argsort(counts, kind="stable")
        order = [*ordered[: _MOST_COUNTS // 2].tolist(), *ordered[-_MOST_COUNTS // 2 :].tolist()]
    text = ", ".join(f"{dataset.class_names[label]} {counts[label]:,}" for label in order)
    some = "" if len(order) == dataset.num_classes else f" (the {len(order)} smallest and largest)"
    return f"training images by class{some}: {text}"


def results_table(summary: Summary) -> Table:
    """A run's results as a table for the terminal."""
    title = f"{summary['name']}: {summary['dataset']}, seed {summary['seed']}"
    table = Table(title=Text(title, "table.title"), show_header=False)
    best = Text(f"epoch {summary['best_epoch']} of {summary['epochs']} ({summary['stopped']})")
    table.add_row("test accuracy", f"[bold]{summary['test_accuracy']:.2f} %[/]")
    if summary["balanced_accuracy"] is not None:  # None in runs that an older version finished
        table.add_row("balanced accuracy", f"{summary['balanced_accuracy']:.2f} %")
    if summary["top5_accuracy"] is not None:
        table.add_row("among the five most probable", f"{summary['top5_accuracy']:.2f} %")
    table.add_row("test loss", "not finite" if summary["test_loss"] is None else f"{summary['test_loss']:.4f}")
    if summary["val_accuracy"] is not None:
        table.add_row("validation accuracy", f"{summary['val_accuracy']:.2f} %")
    if summary["calibration_error"] is not None:
        scaled = "" if summary["temperature"] is None else f" at temperature {summary['temperature']:.3f}"
        table.add_row("calibration error", f"{100 * summary['calibration_error']:.2f} %{scaled}")
    table.add_row("weights of", best)
    table.add_row("training time", f"{summary['seconds']:.1f} s")
    table.add_row("training speed", f"{summary['images_per_second']:,.0f} images/s")
    trained, total = summary["trainable_parameters"], summary["total_parameters"]
    table.add_row("trained parameters", f"{trained:,} of {total:,}")
    return table
