"""Decisions based on the validation history: plateaus, early stopping, and which epoch's weights are kept.

They are functions of the history alone. So no state needs to be saved, and a resumed run decides like an uninterrupted
one.
"""

import math
from collections.abc import Sequence

from jaxcnn.config.experiment import ExperimentConfig
from jaxcnn.config.training import OptimConfig, TrainConfig
from jaxcnn.masks import settled_epoch
from jaxcnn.training.records import EpochRecord


def plateau_scale(losses: Sequence[float], config: OptimConfig) -> float:
    """The factor by which plateaus have reduced the learning rate, after these validation losses.

    As `torch.optim.lr_scheduler.ReduceLROnPlateau` with its defaults: an epoch improves if its loss is lower than the
    best by a relative 1e-4. After `plateau_patience` epochs in a row without improvement, the next such epoch reduces
    the rate.
    """
    best, bad_epochs, scale = math.inf, 0, 1.0
    for loss in losses if config.schedule == "plateau" else ():
        if loss < best * (1 - 1e-4):
            best, bad_epochs = loss, 0
        else:
            bad_epochs += 1
        if bad_epochs > config.plateau_patience:
            bad_epochs = 0
            cut = scale * config.plateau_factor
            scale = cut if config.learning_rate * (scale - cut) > 1e-8 else scale  # PyTorch ignores a smaller change
    return scale


def stop_reason(losses: Sequence[float], accuracies: Sequence[float], config: TrainConfig) -> str | None:
    """Why training should stop after these validation losses and accuracies (percent), or None.

    The target accuracy is checked first. A loss equal to the best so far counts as an improvement.
    """
    best, stalled = math.inf, 0
    for loss in losses:
        best, stalled = (loss, 0) if loss <= best else (best, stalled + 1)
    target, patience = config.early_stopping_target, config.early_stopping_patience
    if target is not None and accuracies and accuracies[-1] >= target:
        return f"validation accuracy {accuracies[-1]:.2f} % reached the target of {target:g} %"
    if patience is not None and stalled >= patience:
        return f"no lower validation loss for {stalled} epochs"
    return None


def best_epoch(losses: Sequence[float], accuracies: Sequence[float]) -> int:
    """Index of the epoch with the highest validation accuracy; among equals, the one with the lowest loss."""
    return max(range(len(losses)), key=lambda i: (accuracies[i], -losses[i], -i))


def reason_to_stop(records: Sequence[EpochRecord], config: ExperimentConfig) -> str | None:
    """Why a run with these records should end before its last epoch, or None.

    Epochs of probing and of gradual unfreezing are ignored: a run should train everything that its mask leaves free
    before it ends. Plateaus ignore them too.
    """
    counted = records[settled_epoch(config.freeze, config.model) :]
    losses = [r.val_loss for r in counted if r.val_loss is not None]
    accuracies = [r.val_accuracy for r in counted if r.val_accuracy is not None]
    return stop_reason(losses, accuracies, config.train)


def validates(config: ExperimentConfig, record: EpochRecord) -> bool:
    """Whether validation chooses the epoch whose weights are kept."""
    return config.protocol != "original" and record.val_loss is not None


def kept_epoch(records: Sequence[EpochRecord], config: ExperimentConfig) -> int:
    """Index of the epoch whose weights are kept: the best by validation, or the last if there is no validation."""
    if not all(validates(config, record) for record in records):
        return len(records) - 1
    pairs = [(r.val_loss, r.val_accuracy) for r in records if r.val_loss is not None and r.val_accuracy is not None]
    losses, accuracies = zip(*pairs, strict=True)
    return best_epoch(losses, accuracies)
