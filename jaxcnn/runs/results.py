"""Writing the results of a finished run."""

import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxcnn.config.experiment import ExperimentConfig, TransferConfig
from jaxcnn.data.splits import Dataset
from jaxcnn.files import write_json, write_npy, write_text
from jaxcnn.masks import mask_name
from jaxcnn.runs.calibration import calibration_error, confidence_bins
from jaxcnn.runs.examples import select_examples
from jaxcnn.runs.metrics import Board, write_metrics
from jaxcnn.runs.scores import COLUMNS, balanced_accuracy, class_scores, row, top_accuracy
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
    temperature: float | None,
    board: Board,
    began: float,
) -> Summary:
    """Writes arrays, metrics and the scores of each class. `summary.json` comes last: it marks the run as finished.

    Args:
        folder: the run's folder.
        config: the run's configuration.
        dataset: the data set, for the labels of its test split.
        records: the records of all epochs.
        counts: parameters, from `masks.count_parameters`.
        tested: the evaluation of the best weights on the test set.
        temperature: divides the logits before they become probabilities; None leaves them as they are.
        board: gets the test's loss and accuracy, at the best epoch.
        began: the time at which this process started the run, from `time.perf_counter`.

    Returns:
        The content of `summary.json`. A test loss that is not finite becomes None, because JSON has no such number.
    """
    best = kept_epoch(records, config)
    loss, accuracy, logits = tested
    labels = dataset.test.labels
    predictions = logits.argmax(-1).astype(np.int32)
    probabilities = softmax(logits / np.float64(temperature or 1))
    finite = bool(np.isfinite(probabilities).all())
    examples = select_examples(probabilities, labels)
    write_metrics(folder, records)  # again: a kill after the last checkpoint leaves a line out
    for name, values in (
        ("train_loss", [r.train_loss for r in records]),
        ("val_loss", [r.val_loss for r in records if r.val_loss is not None]),
        ("val_accuracy", [r.val_accuracy for r in records if r.val_accuracy is not None]),
        ("test_loss", [loss]),
        ("test_accuracy", [accuracy]),
        ("predictions", predictions),
        ("probabilities", probabilities),
        ("labels", labels),
        ("examples", examples),
        ("example_images", dataset.test.images[examples]),
    ):
        write_npy(folder / "results" / f"{name}.npy", np.asarray(values))
    scores = class_scores(labels, predictions, dataset.class_names)
    write_text(folder / "classes.csv", csv_text([COLUMNS, *map(row, scores)]))
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
        "top5_accuracy": top_accuracy(logits, labels) if dataset.num_classes > 10 else None,
        "calibration_error": calibration_error(confidence_bins(probabilities, labels)) if finite else None,
        "temperature": temperature,
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
