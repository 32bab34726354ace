"""The end of a run: the test set is read once, and what came of the run is on disk before anything is drawn."""

import math
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from jaxcnn.config.experiment import ExperimentConfig, TransferConfig
from jaxcnn.data.splits import Dataset
from jaxcnn.files import write_json, write_npy, write_text
from jaxcnn.masks import mask_name
from jaxcnn.runs.metrics import Board, write_metrics
from jaxcnn.runs.scores import balanced_accuracy, class_scores
from jaxcnn.runs.summary import Summary
from jaxcnn.runs.tables import csv_text
from jaxcnn.training.decisions import kept_epoch, reason_to_stop
from jaxcnn.training.records import EpochRecord, Evaluation, softmax
from jaxcnn.weights.transfer import copied_stages


def write_results(
    folder: Path,
    config: ExperimentConfig,
    dataset: Dataset,
    records: Sequence[EpochRecord],
    counts: Sequence[tuple[str, int, bool]],
    tested: Evaluation,
    began: float,
) -> Summary:
    """Writes arrays, metrics, the accuracy of each class and, last of all, `summary.json`.

    Args:
        folder: of the run.
        config: of the run.
        dataset: whose test split was read.
        records: of all epochs.
        counts: parameters, as `masks.count_parameters` gives them.
        tested: what the best weights do on the test set.
        began: when this process began with the run, on `time.perf_counter`'s clock.

    Returns:
        What `summary.json` holds. A test loss that is not finite is None there: JSON has no such number.
    """
    best = kept_epoch(records, config)
    loss, accuracy, logits = tested
    predictions = logits.argmax(-1).astype(np.int32)
    write_metrics(folder, records)  # a process killed between checkpoint and table left a line too few
    for name, values in (
        ("train_loss", [r.train_loss for r in records]),
        ("val_loss", [r.val_loss for r in records if r.val_loss is not None]),
        ("val_accuracy", [r.val_accuracy for r in records if r.val_accuracy is not None]),
        ("test_loss", [loss]),
        ("test_accuracy", [accuracy]),
        ("predictions", predictions),
        ("probabilities", softmax(logits)),
        ("labels", dataset.test.labels),
    ):
        write_npy(folder / "results" / f"{name}.npy", np.asarray(values))
    scores = class_scores(dataset.test.labels, predictions, dataset.class_names)
    rows = [(each.name, each.images, each.correct, "" if each.accuracy is None else each.accuracy) for each in scores]
    write_text(folder / "classes.csv", csv_text([("class", "images", "correct", "accuracy"), *rows]))
    with closing(Board(folder / "logs", records)) as board:
        board.add(records[best].epoch, {"Loss/test": loss, "Accuracy/test": accuracy})
    summary: Summary = {
        "name": config.run_name,
        "dataset": dataset.name,
        "mask": mask_name(config.freeze, config.model),
        "copied_stages": copied_stages(config, config.model) if isinstance(config, TransferConfig) else 0,
        "frozen_stages": sum(not trains for _, _, trains in counts),
        "seed": config.seed,
        "test_accuracy": accuracy,
        "balanced_accuracy": balanced_accuracy(scores),
        "test_loss": loss if math.isfinite(loss) else None,
        "val_accuracy": records[best].val_accuracy,
        "val_loss": records[best].val_loss,
        "best_epoch": records[best].epoch,
        "epochs": len(records),
        "stopped": reason_to_stop(records, config) or f"all {config.train.epochs} epochs are done",
        "seconds": sum(r.seconds for r in records),
        "images_per_second": float(np.median([r.images_per_second for r in records])),
        "trainable_parameters": sum(count for _, count, trains in counts if trains),
        "total_parameters": sum(count for _, count, _ in counts),
        "wall_seconds": time.perf_counter() - began,
    }
    write_json(folder / "summary.json", summary)
    return summary
