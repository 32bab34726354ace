"""Programs that measure, at small sizes: they run, and what they compare agrees."""

import json
import re
from pathlib import Path

import pytest
from small_training import MODEL, draw_dataset

from experiments.checks import checkpoint_cost, compare_pytorch, streaming
from jaxcnn.errors import InputError

pytestmark = pytest.mark.slow


def test_images_streamed_from_a_file_train_the_same_bits(capsys: pytest.CaptureFixture[str]) -> None:
    streaming.measure(streaming.Flags(images=1500, size=16, steps=2, rounds=2, batch_size=32))
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "0.00 GB of images in a file"
    assert re.fullmatch(r"streamed alone: at most [\d.]+ GB of anonymous memory, \d+ images/s", rest[0])
    assert [line.partition(":")[0] for line in rest[1:3]] == ["round 1", "round 2"]
    assert rest[-1].endswith("; the same bits")


def test_the_cost_of_a_checkpoint_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], own_cache: None
) -> None:
    small = "--model.input-size 8 --model.num-blocks 1 --model.hidden-dims 4 8 6 --model.layers-per-block 1"
    small += " --model.apply-pooling 1 --model.apply-bn 1"
    flags = ["--data.name", "digits", "--data.fraction", "0.1", "--train.epochs", "2", *small.split()]
    monkeypatch.setattr("sys.argv", ["", *flags])
    checkpoint_cost.measure()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("digits, 130 training images, ")
    assert "ms behind after 130 images" in last
    assert "(n = 2 of each kind" in last


def test_training_here_and_in_pytorch_agree_in_double_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare_pytorch, "MODEL", MODEL)
    monkeypatch.setattr(compare_pytorch, "load_dataset", lambda *_, **__: draw_dataset(validation=None))
    written = tmp_path / "result.json"
    flags = ["--images", "32", "--epochs", "2", "--batch-size", "16", "--seeds", "0", "1", "--json", str(written)]
    for optimizer in ("sgd", "adam"):
        monkeypatch.setattr("sys.argv", ["compare", *flags, "--optimizer", optimizer])
        compare_pytorch.main()
        result = json.loads(written.read_text())
        assert result["images"] == {"train": 32, "test": 19}
        for seed in result["seeds"]:
            assert seed["largest_difference_in_float64"] < 1e-12
            assert seed["largest_difference_of_first_losses"] < (1e-5 if optimizer == "sgd" else 1e-2)
            assert abs(seed["first_losses"]["jax"][0] - seed["first_losses"]["pytorch"][0]) < 1e-6
        assert "mean difference" in capsys.readouterr().out


def test_a_comparison_without_images_or_data_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lacks(*_: object, **__: object) -> None:
        raise InputError("there is no data set")

    monkeypatch.setattr(compare_pytorch, "load_dataset", lacks)
    for flags, told in ((["--images", "0"], "must be at least 1"), ([], "there is no data set")):
        monkeypatch.setattr("sys.argv", ["compare", *flags])
        with pytest.raises(SystemExit) as ended:
            compare_pytorch.main()
        assert ended.value.code == 2
        assert told in capsys.readouterr().err
