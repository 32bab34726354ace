"""A run that an earlier version started continues under this one, with the same results.

`reference/run.zip` was written by version 0.1.0 when all modules still lay side by side: `begun` is a run's folder as
SIGTERM left it after one epoch and four steps of the second, `finished` what that version made of it in two epochs.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_parity import loose_names
from tiny_run import rows, scalars, weights

from jaxcnn.cli.config_file import read_config
from jaxcnn.config import ExperimentConfig
from jaxcnn.runs.run import run_experiment

ARCHIVE = Path(__file__).parent / "reference" / "run.zip"
STEPS = 18  # of 11 an epoch, which are left to the run


@pytest.mark.slow
@pytest.mark.usefixtures("own_cache", "optimised")
def test_a_run_of_an_earlier_version_goes_on_to_its_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.unpack_archive(ARCHIVE, tmp_path)
    begun, finished = tmp_path / "begun", tmp_path / "finished"
    config = replace(read_config(begun / "config.json", ExperimentConfig), runs_dir=tmp_path)
    summary = run_experiment(config)
    assert "continuing after epoch 1 and 4 of 11 steps\n" in capsys.readouterr().out

    wanted = json.loads((finished / "summary.json").read_text())
    assert summary.keys() >= wanted.keys()  # later versions tell more
    for name, value in wanted.items():
        if name not in ("seconds", "images_per_second", "wall_seconds"):
            assert summary[name] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value), name
    for row, other in zip(rows(begun / "metrics.csv"), rows(finished / "metrics.csv"), strict=True):
        for name in ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate"):
            assert float(row[name]) == pytest.approx(float(other[name]), rel=1e-4), name
    for path in (finished / "results").iterdir():
        np.testing.assert_allclose(np.load(begun / "results" / path.name), np.load(path), rtol=1e-4)

    trained, other_weights = weights(begun), weights(finished)
    assert list(trained) == list(other_weights)
    loose = loose_names(config.model)  # where Adam makes steps of rounding
    for name, tensor in other_weights.items():
        atol = STEPS * config.optim.learning_rate if name in loose else 1e-4
        np.testing.assert_allclose(trained[name], tensor, rtol=0, atol=atol, err_msg=name)
    assert set(scalars(begun / "logs")["Loss/train"]) == {1, 2, 3}
