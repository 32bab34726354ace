"""What a person sees of a run."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import jax
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from experiments.folder import Summary
from jaxcnn.config import ExperimentConfig
from jaxcnn.data import Dataset
from jaxcnn.features import caches_features, feature_bytes
from jaxcnn.masks import frozen_stages, settled_epoch
from jaxcnn.step import Metrics
from jaxcnn.train import EpochRecord


class Bar:
    """A bar within the epoch where there is a terminal, and a line for every epoch anywhere."""

    def __init__(self, console: Console, epochs: int, images: int, done: int, behind: int) -> None:
        """`images` is what an epoch trains on, `done` the epochs that are over, `behind` the images of the next one."""
        self._console, self._epochs, self._images, self._done, self._behind = console, epochs, images, done, behind
        self._before = done * images + behind
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=images, epoch=done + 1, epochs=epochs, numbers="")
        self._began = self._epoch_began = time.perf_counter()

    def __enter__(self) -> "Bar":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, seen: int, total: Metrics) -> None:
        """Shows how far the epoch is; called with the images seen and the metrics summed over them."""
        now = time.perf_counter()
        rate = seen / (now - self._epoch_began)
        reached = self._done * self._images + self._behind + seen
        left = (now - self._began) / (reached - self._before) * (self._epochs * self._images - reached)
        numbers = (
            f"loss {total.loss / total.count:.4f}  accuracy {100 * total.correct / total.count:.2f} %  "
            f"{rate:,.0f} images/s  {_clock(left)} left"
        )
        self._bar.update(self._task, completed=self._behind + seen, numbers=numbers)

    def epoch(self, record: EpochRecord, *, is_best: bool) -> None:
        """Prints the epoch's line."""
        self._done, self._behind = record.epoch, 0
        self._epoch_began = time.perf_counter()
        validation = ""
        if record.val_loss is not None:
            validation = f"  validation {record.val_loss:.4f}  {record.val_accuracy:6.2f} %"
        width = len(str(self._epochs))
        self._console.print(
            f"epoch {record.epoch:{width}}/{self._epochs}  "
            f"train {record.train_loss:.4f}  {record.train_accuracy:6.2f} %{validation}  "
            f"rate {record.learning_rate:.2g}  {record.images_per_second:,.0f} images/s  "
            f"{record.seconds:.1f} s{'  best' if is_best else ''}",
            highlight=False,
        )
        self._bar.reset(self._task, total=self._images, epoch=record.epoch + 1, epochs=self._epochs, numbers="")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def print_start(
    console: Console,
    folder: Path,
    config: ExperimentConfig,
    dataset: Dataset,
    counts: Sequence[tuple[str, int, bool]],
) -> None:
    """Prints what is about to be trained on what; `counts` are those of `masks.count_parameters`."""
    validation = 0 if dataset.validation is None else len(dataset.validation.labels)
    console.print(
        f"[bold]{escape(str(folder))}[/]: {dataset.name}, {dataset.num_classes} classes, "
        f"{len(dataset.train.labels):,} training, {validation:,} validation, {len(dataset.test.labels):,} test images; "
        f"augmentation {config.data.augment}; seed {config.seed}; on {jax.devices()[0].device_kind}",
        highlight=False,
    )
    trained, total = sum(count for _, count, trains in counts if trains), sum(count for _, count, _ in counts)
    parts = ", ".join(f"{name} {count:,}{'' if trains else ' (frozen)'}" for name, count, trains in counts)
    console.print(f"trains {trained:,} of {total:,} parameters: {parts}", highlight=False)
    settled = settled_epoch(config.freeze, config.model)
    if settled >= config.train.epochs:
        console.print(f"more than {settled} epochs would be needed to reach the mask {config.freeze.mask}")
    phases = {frozen_stages(config.freeze, config.model, e) for e in range(min(settled + 1, config.train.epochs))}
    kept = [feature_bytes(config, dataset, f) for f in phases if caches_features(config, dataset, f)]
    if kept:
        size = max(kept) / 2**20
        console.print(f"the output of the frozen stages is computed once and kept: {size:,.0f} MiB", highlight=False)


def results_table(summary: Summary) -> Table:
    """A run's results to look at."""
    table = Table(
        title=f"{escape(summary['name'])}: {escape(summary['dataset'])}, seed {summary['seed']}", show_header=False
    )
    best = f"epoch {summary['best_epoch']} of {summary['epochs']} ({escape(summary['stopped'])})"
    table.add_row("test accuracy", f"[bold]{summary['test_accuracy']:.2f} %[/]")
    table.add_row("test loss", "not finite" if summary["test_loss"] is None else f"{summary['test_loss']:.4f}")
    if summary["val_accuracy"] is not None:
        table.add_row("validation accuracy", f"{summary['val_accuracy']:.2f} %")
    table.add_row("weights of", best)
    table.add_row("training time", f"{summary['seconds']:.1f} s")
    table.add_row("training speed", f"{summary['images_per_second']:,.0f} images/s")
    trained, total = summary["trainable_parameters"], summary["total_parameters"]
    table.add_row("trained parameters", f"{trained:,} of {total:,}")
    return table
