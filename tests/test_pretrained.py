"""Weights that come with the project: by name, and how they are made."""

import json
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from refusals import message
from safetensors.numpy import load_file
from tiny_run import MODEL, TINY, ended

import jaxcnn
from experiments import bundle
from jaxcnn.cli import predict, transfer
from jaxcnn.cli.convert import Flags, convert
from jaxcnn.data.sets import load_dataset
from jaxcnn.runs.run import open_source
from jaxcnn.weights import pretrained
from jaxcnn.weights.card import to_metadata
from jaxcnn.weights.files import write_state_dict

pytestmark = pytest.mark.usefixtures("own_cache")

DIGITS = load_dataset(TINY.data, input_size=8, in_channels=1, seed=0)


@pytest.fixture(scope="module")
def bundled(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the program makes of the run, under the name of predict's default."""
    file = tmp_path_factory.mktemp("pretrained") / "cifar10-shallow.safetensors"
    told = "--origin 'Scans of 1998.' --command 'jaxcnn train --data.name digits' --hardware 'an abacus'"
    bundle.program([str(finished), str(file), *shlex.split(told), "--dataset", "some/digits"])
    return file


@pytest.fixture
def there(bundled: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """These weights come with the project, and the current folder is an empty one."""
    monkeypatch.setattr(pretrained, "_FOLDER", bundled.parent)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def test_what_comes_with_the_project_has_a_card_and_tells_all_that_is_needed() -> None:
    for name in pretrained.pretrained_names():
        file = pretrained.locate_weights(Path(name))
        assert {array.dtype.name for array in load_file(file).values()} == {"float16", "int64"}
        assert f"# {name}\n" in file.with_suffix(".md").read_text()
        model = jaxcnn.load(name)
        assert (model.assumed, model.notes) == ((), ())
        assert model.card.class_names
        leaves = jax.tree.leaves(model.variables["params"])
        assert all(leaf.dtype == np.float32 and np.isfinite(leaf).all() for leaf in leaves)


@pytest.mark.usefixtures("there")
def test_a_name_stands_for_weights_that_are_float32_once_read(finished: Path, bundled: Path, tmp_path: Path) -> None:
    model, trained = jaxcnn.load("cifar10-shallow"), jaxcnn.load(finished)
    assert (model.config, model.card, model.assumed) == (MODEL, trained.card, ())
    leaves = zip(*(jax.tree.leaves(each.variables) for each in (model, trained)), strict=True)
    assert all(ours.dtype == theirs.dtype for ours, theirs in leaves)
    found, wanted = (each.predict_proba(DIGITS.test.images) for each in (model, trained))
    np.testing.assert_allclose(found, wanted, atol=2e-3)
    assert (found != wanted).any()
    assert jaxcnn.create_transfer_model("cifar10-shallow", 3, mask="full").model.config.num_classes == 3
    convert(Flags(Path("cifar10-shallow"), tmp_path / "a.safetensors"))
    assert load_file(tmp_path / "a.safetensors")["fc1.weight"].dtype == np.float32
    assert bundled.stat().st_size < 0.62 * (finished / "model.safetensors").stat().st_size


@pytest.mark.usefixtures("there", "isolated")
def test_predict_takes_them_if_no_model_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(DIGITS.test.images[0, ..., 0]).save(tmp_path / "photo.png")
    predict.program([str(tmp_path / "photo.png"), "--json", str(tmp_path / "p.json")])
    told = json.loads((tmp_path / "p.json").read_text())
    found = jaxcnn.load("cifar10-shallow").predict_proba(DIGITS.test.images[:1])
    np.testing.assert_allclose(told["images"][0]["probabilities"], found[0], atol=1e-6)
    assert "not finished" not in capsys.readouterr().out


@pytest.mark.usefixtures("there")
def test_a_transfer_begins_with_them() -> None:
    (config,), *_ = transfer.parse(["--source", "cifar10-shallow", "--target", "digits"])
    assert (config.source, config.run_name) == (Path("cifar10-shallow"), "transfer_cifar10-shallow_to_digits_full")
    source = open_source(config)
    assert source.config == MODEL
    assert source.variables["params"]["fc1"]["kernel"].dtype == np.float32


@pytest.mark.usefixtures("there")
def test_other_names_are_refused_and_a_path_that_is_there_goes_first(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = "or a name of weights that come with the project: cifar10-shallow"
    assert message(lambda: jaxcnn.load("cifar10-deep")).endswith(listed)
    (config,), *_ = transfer.parse(["--source", "runs/none", "--target", "digits"])
    assert message(lambda: open_source(config)).endswith(listed)
    words = ["--model", "cifar10", str(finished / "confusion.png")]
    status, _, err = ended(lambda: predict.program(words[2:] + words[:2]), capsys)
    assert (status, err.count("\n"), err.rstrip().endswith(listed)) == (2, 1, True)
    assert pretrained.locate_weights(Path("a/cifar10-shallow")) == Path("a/cifar10-shallow")
    Path("cifar10-shallow").mkdir()
    assert pretrained.locate_weights(Path("cifar10-shallow")) == Path("cifar10-shallow")


def test_the_card_has_both_accuracies_and_what_the_run_does_not_tell(bundled: Path, finished: Path) -> None:
    card = bundled.with_suffix(".md").read_text()
    summary = json.loads((finished / "summary.json").read_text())
    right = round(summary["test_accuracy"] * 3.59)
    assert f"| float32, as trained | {right} of 359 | {summary['test_accuracy']:.2f} |" in card
    assert "| float16, as in the file | " in card
    for told in (
        "# cifar10-shallow\n",
        '- "some/digits"',
        "Scans of 1998.",
        "```bash\njaxcnn train --data.name digits\n```",
        "| computed on | an abacus |",
        'jaxcnn.load("cifar10-shallow")',
        "| class | images | accuracy (%) |",
        "No licence is stated.",
    ):
        assert told in card
    assert "model.py" not in card
    assert "](confusion.png)" not in card


def test_what_cannot_be_bundled_is_refused(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = ["--origin", "o", "--command", "c", "--hardware", "h"]
    out = tmp_path / "a.safetensors"
    assert "give the name of a .safetensors file" in message(
        lambda: bundle.program([str(finished), str(tmp_path / "a.pth"), *told])
    )
    assert "no folder of a finished run" in message(lambda: bundle.program([str(tmp_path), str(out), *told]))
    variables = jaxcnn.init_variables(MODEL, jax.random.key(0))
    assert "larger than float16" in message(lambda: bundle.to_float16(jax.tree.map(lambda leaf: leaf + 1e5, variables)))
    monkeypatch.setattr(bundle, "_accuracy", lambda probabilities, labels: 3.0)
    assert "the test images are not those of" in message(lambda: bundle.program([str(finished), str(out), *told]))
    assert list(tmp_path.iterdir()) == []


def test_metadata_of_a_run_are_those_of_what_is_bundled(bundled: Path, finished: Path, tmp_path: Path) -> None:
    card = jaxcnn.load(finished).card
    write_state_dict(tmp_path / "a.safetensors", jaxcnn.load(finished).variables, MODEL, to_metadata(MODEL, card))
    assert (tmp_path / "a.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    assert jaxcnn.load(bundled).card == card
