"""The end of a run: the test set is read once, and what came of the run is on disk before anything is drawn."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from experiments.folder import Summary
from experiments.metrics import Board, write_metrics
from experiments.present import remove_pictures
from jaxcnn.config import ExperimentConfig
from jaxcnn.data import Dataset
from jaxcnn.files import write_json, write_npy
from jaxcnn.optim import best_epoch
from jaxcnn.train import EpochRecord, evaluate, evaluation_step, stopped


def write_results(
    folder: Path,
    config: ExperimentConfig,
    dataset: Dataset,
    records: Sequence[EpochRecord],
    variables: Mapping[str, Any],
    counts: Sequence[tuple[str, int, bool]],
    began: float,
) -> Summary:
    """Evaluates the best weights on the test set; writes arrays, metrics and, last of all, `summary.json`.

    Args:
        folder: of the run.
        config: of the run.
        dataset: whose test split is read.
        records: of all epochs.
        variables: the best weights.
        counts: parameters, as `masks.count_parameters` gives them.
        began: when this process began with the run, on `time.perf_counter`'s clock.

    Returns:
        What `summary.json` holds. A test loss that is not finite is None there: JSON has no such number.
    """
    best = kept_epoch(records, config)
    eval_step = evaluation_step(config, dataset)
    loss, accuracy, predictions = evaluate(eval_step, variables, dataset.test, config.train.batch_size)
    write_metrics(folder, records)  # a process killed between checkpoint and table left a line too few
    for name, values in (
        ("train_loss", [r.train_loss for r in records]),
        ("val_loss", [r.val_loss for r in records if r.val_loss is not None]),
        ("val_accuracy", [r.val_accuracy for r in records if r.val_accuracy is not None]),
        ("test_loss", [loss]),
        ("test_accuracy", [accuracy]),
        ("predictions", predictions),
        ("labels", dataset.test.labels),
    ):
        write_npy(folder / "results" / f"{name}.npy", np.asarray(values))
    with closing(Board(folder / "logs", records)) as board:
        board.add(records[best].epoch, {"Loss/test": loss, "Accuracy/test": accuracy})
    remove_pictures(folder)
    summary = {
        "name": config.run_name,
        "dataset": dataset.name,
        "mask": config.freeze.mask,
        "seed": config.seed,
        "test_accuracy": accuracy,
        "test_loss": loss if math.isfinite(loss) else None,
        "val_accuracy": records[best].val_accuracy,
        "val_loss": records[best].val_loss,
        "best_epoch": records[best].epoch,
        "epochs": len(records),
        "stopped": stopped(records, config) or f"all {config.train.epochs} epochs are done",
        "seconds": sum(r.seconds for r in records),
        "images_per_second": float(np.median([r.images_per_second for r in records])),
        "trainable_parameters": sum(count for _, count, trains in counts if trains),
        "total_parameters": sum(count for _, count, _ in counts),
        "wall_seconds": time.perf_counter() - began,
    }
    write_json(folder / "summary.json", summary)
    return summary


def validates(config: ExperimentConfig, record: EpochRecord) -> bool:
    """Whether validation decides which epoch counts."""
    return config.protocol != "original" and record.val_loss is not None


def kept_epoch(records: Sequence[EpochRecord], config: ExperimentConfig) -> int:
    """Index of the epoch whose weights count: the best by validation, or the last where there is none."""
    if not all(validates(config, record) for record in records):
        return len(records) - 1
    pairs = [(r.val_loss, r.val_accuracy) for r in records if r.val_loss is not None and r.val_accuracy is not None]
    losses, accuracies = zip(*pairs, strict=True)
    return best_epoch(losses, accuracies)
