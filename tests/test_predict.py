"""A trained network on images as they come: from Python and as a command."""

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from refusals import message
from tiny_run import MODEL, TINY, ended, weights

import jaxcnn
from jaxcnn.cli.predict import program
from jaxcnn.config import ModelConfig
from jaxcnn.config.card import Card
from jaxcnn.data.sets import load_dataset
from jaxcnn.model import init_variables
from jaxcnn.weights import classifier as classifier_module
from jaxcnn.weights.card import to_metadata
from jaxcnn.weights.classifier import Classifier
from jaxcnn.weights.files import write_state_dict
from jaxcnn.weights.pytorch_network import torch_network

pytestmark = pytest.mark.usefixtures("own_cache")

DIGITS = load_dataset(TINY.data, input_size=8, in_channels=1, seed=0)
IMAGES, LABELS = DIGITS.test.images[:20], DIGITS.test.labels[:20]


@pytest.fixture(scope="module")
def model(finished: Path) -> Classifier:
    return jaxcnn.load(finished)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`<digit>/<number>.png`."""
    path = tmp_path_factory.mktemp("photos")
    for number, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        (path / str(label)).mkdir(exist_ok=True)
        Image.fromarray(image[..., 0]).save(path / str(label) / f"{number}.png")
    return path


def in_folders_order(folder: Path) -> list[int]:
    return [int(path.stem) for path in sorted(folder.glob("*/*"), key=lambda path: str(path.relative_to(folder)))]


def flags_of(finished: Path) -> dict[str, Any]:
    resolved = json.loads((finished / "config.json").read_text())["resolved"]
    names = tuple(resolved["class_names"])
    return {"input_size": 8, "activation_function": "relu", "apply_pooling": (1, 0), "class_names": names} | {
        name: tuple(resolved[name]) for name in ("mean", "std")
    }


def test_a_run_and_its_files_alone_give_pytorchs_probabilities(
    model: Classifier, finished: Path, tmp_path: Path
) -> None:
    for name in ("model.pth", "model.safetensors"):
        shutil.copy(finished / name, tmp_path)
    given = flags_of(finished)
    pixels = (DIGITS.test.images / 255.0 - np.array(given["mean"])) / np.array(given["std"])
    network = torch_network(weights(finished), MODEL).eval()
    with torch.no_grad():
        logits = network(torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32)))
    wanted = torch.softmax(logits, 1).numpy()
    of_file, of_pth = jaxcnn.load(tmp_path / "model.safetensors"), jaxcnn.load(tmp_path / "model.pth", **given)
    for each in (model, of_file, of_pth):
        assert (each.config.input_size, each.card, each.assumed) == (8, model.card, ())
        found = each.predict_proba(DIGITS.test.images)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, atol=1e-6, rtol=0)
        np.testing.assert_allclose(found, np.load(finished / "results/probabilities.npy"), atol=1e-6, rtol=0)
        names = each.predict(DIGITS.test.images)
        np.testing.assert_array_equal(names.astype(int), np.load(finished / "results/predictions.npy"))


def test_images_may_be_given_in_every_form(model: Classifier, folder: Path) -> None:
    wanted = model.predict_proba(IMAGES)
    order = in_folders_order(folder)
    files = [folder / str(LABELS[i]) / f"{i}.png" for i in range(20)]
    opened = [Image.open(file) for file in files]
    forms = {
        "files": files,
        "texts": map(str, files),
        "grey stack": IMAGES[..., 0],
        "list of arrays": list(IMAGES),
        "Pillow images": opened,
        "of every kind": [files[0], str(files[1]), opened[2], IMAGES[3], *IMAGES[4:, ..., 0]],
        "jax": jax.numpy.asarray(IMAGES),
        "torch": torch.from_numpy(IMAGES.copy()),
    }
    for name, form in forms.items():
        np.testing.assert_allclose(model.predict_proba(form), wanted, atol=1e-6, err_msg=name)
    for form in (folder, str(folder), [folder]):
        np.testing.assert_allclose(model.predict_proba(form), wanted[order], atol=1e-6)
    for single in (files[0], str(files[0]), opened[0], IMAGES[0], IMAGES[0, ..., 0]):
        found = model.predict_proba(single)
        assert found.shape == (1, 10)
        np.testing.assert_allclose(found, wanted[:1], atol=1e-6)
    assert model.predict_proba([]).shape == (0, 10)
    for image in opened:
        image.close()


def test_other_sizes_become_what_the_network_reads(model: Classifier) -> None:
    wide = np.repeat(np.repeat(IMAGES[0], 4, axis=0), 6, axis=1)
    picture = Image.fromarray(wide[..., 0])
    for resize in ("squash", "crop", "pad"):
        of_kind = replace(model, card=replace(model.card, resize=resize))
        wanted = of_kind.predict_proba(classifier_module.fit_image(wide, 8, 1, resize))
        for form in (wide, picture):
            np.testing.assert_allclose(of_kind.predict_proba(form), wanted, atol=1e-6)


def test_batches_change_nothing(model: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = model.predict_proba(IMAGES)
    monkeypatch.setattr(classifier_module, "_PIXELS", 8 * 8 * 7)
    np.testing.assert_allclose(model.predict_proba(IMAGES), wanted, atol=1e-6)


def test_what_is_no_image_is_refused(model: Classifier, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    Image.new("RGB", (8, 8)).save(tmp_path / "colour.png")
    (tmp_path / "empty").mkdir()
    for given, told in (
        (tmp_path / "text.jpg", f"{tmp_path / 'text.jpg'} cannot be decoded"),
        ([folder, tmp_path / "text.jpg"], f"{tmp_path / 'text.jpg'} cannot be decoded"),
        (tmp_path / "colour.png", f"{tmp_path / 'colour.png'} does not fit the network: the images are RGB"),
        (tmp_path / "missing.png", f"{tmp_path / 'missing.png'} does not exist"),
        (tmp_path / "empty", f"{tmp_path / 'empty'} holds no files"),
        (IMAGES / 255, "float64"),
        (np.zeros((8, 8, 4), np.uint8), "(8, 8, 4)"),
        (np.zeros(8, np.uint8), "(8,)"),
        (3, "images=3"),
    ):
        assert told in message(lambda given=given: model.predict_proba(given))


def test_a_bare_model_must_be_told_what_it_does_not_tell(finished: Path, tmp_path: Path) -> None:
    path = shutil.copy(finished / "model.pth", tmp_path)
    given = flags_of(finished)
    told = f"{path} does not contain mean and std"
    assert told in message(lambda: jaxcnn.load(path, **given | {"mean": None}))
    assert "class_names=('a',)" in message(lambda: jaxcnn.load(path, **given | {"class_names": ("a",)}))
    assert "std=(1.0, 1.0)" in message(lambda: jaxcnn.load(path, **given | {"std": (1.0, 1.0)}))
    with pytest.warns(UserWarning, match="assumed: activation_function=relu"):
        unnamed = jaxcnn.load(path, **given | {"class_names": None, "activation_function": None})
    np.testing.assert_array_equal(unnamed.classes, np.arange(10))
    assert unnamed.predict(IMAGES).dtype.kind == "i"
    assert jaxcnn.load(finished, class_names=list("abcdefghij")).predict(IMAGES[:1])[0] in "abcdefghij"


def test_a_network_that_diverged_is_refused(model: Classifier) -> None:
    broken = jax.tree.map(lambda leaf: leaf * np.nan, model.variables)
    assert "not finite" in message(lambda: replace(model, variables=broken).predict(IMAGES))


def shown(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    program([str(word) for word in words])
    return capsys.readouterr().out


@pytest.mark.usefixtures("isolated")
def test_the_command_shows_and_writes_what_the_network_says(
    model: Classifier, finished: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shown(capsys, folder, "--model", finished, "--csv", tmp_path / "p.csv", "--json", tmp_path / "p.json")
    order = in_folders_order(folder)
    wanted, labels = model.predict_proba(IMAGES)[order], LABELS[order].astype(str)
    names = model.predict(IMAGES)[order]
    right = 100 * np.mean(names == labels)
    assert f"accuracy {right:.2f} % of 20 images whose folders name their class\n" in out
    assert f" {100 * wanted[0].max():.2f} %" in out
    with (tmp_path / "p.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["file", "label", "prediction", *(f"p({digit})" for digit in range(10))]
    assert [row[0] for row in rows] == [str(folder / labels[i] / f"{order[i]}.png") for i in range(20)]
    assert [row[1:3] for row in rows] == [list(pair) for pair in zip(labels, names, strict=True)]
    np.testing.assert_allclose(np.array([row[3:] for row in rows], np.float32), wanted, atol=1e-6)
    told = json.loads((tmp_path / "p.json").read_text())
    assert told["classes"] == list("0123456789")
    assert told["accuracy"] == pytest.approx(right)
    np.testing.assert_allclose([each["probabilities"] for each in told["images"]], wanted, atol=1e-6)
    assert [each["prediction"] for each in told["images"]] == names.tolist()
    assert {tuple(each) for each in told["images"]} == {("file", "label", "prediction", "probabilities")}


@pytest.mark.usefixtures("isolated")
def test_the_table_shows_as_many_classes_as_there_are_and_as_are_asked_for(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    two = ModelConfig(**{**vars(MODEL), "num_classes": 2})
    path = tmp_path / "two.safetensors"
    card = Card(("[red]", "b\nc"), (0.5,), (0.5,))
    write_state_dict(path, init_variables(two, jax.random.key(0)), two, to_metadata(two, card))
    file = next(folder.glob("*/*"))
    monkeypatch.setenv("COLUMNS", "300")
    out = shown(capsys, file, "--model", path)
    assert ["image", "1.", "2."] in map(str.split, out.splitlines())
    assert all(name in out for name in ("[red]", "'b\\nc'", str(file)))
    assert "accuracy" not in out
    assert ["image", "1."] in map(str.split, shown(capsys, file, "--model", path, "--top-k", 1).splitlines())
    monkeypatch.setattr("jaxcnn.runs.predictions._ROWS", 4)
    assert "and 16 more images; --csv and --json write all" in shown(capsys, folder, "--model", path)


@pytest.mark.usefixtures("isolated")
def test_broken_files_end_the_command_or_are_left_out_and_listed(
    finished: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a[b].png", "z.txt"):
        (tmp_path / name).write_text("no image")
    words = [str(tmp_path / "a[b].png"), str(folder), str(tmp_path / "z.txt"), "--model", str(finished)]
    status, out, err = ended(lambda: program(words), capsys)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {tmp_path / 'a[b].png'} cannot be decoded")
    assert err.endswith("or give --skip-broken\n")
    lines = shown(capsys, *words, "--skip-broken").splitlines()
    at = lines.index("2 files were left out:")
    assert [line.partition(" cannot")[0] for line in lines[at + 1 :]] == [words[0], words[2]]
    status, _, err = ended(lambda: program([words[0], "--model", str(finished), "--skip-broken"]), capsys)
    assert (status, "none of the files" in err) == (2, True)


@pytest.mark.usefixtures("isolated")
def test_any_file_name_and_the_best_weights_so_far_will_do(
    finished: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "summary.json").unlink()
    name = os.fsdecode(b"a \xff\n.png")
    shutil.copy(next(folder.glob("*/*")), tmp_path / name)
    out = shown(capsys, tmp_path / name, "--model", run, "--csv", tmp_path / "p.csv", "--json", tmp_path / "p.json")
    assert f"the run of {run} is not finished; its best epoch so far is used" in out
    told = f"{tmp_path}/a \\xff\n.png"
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file))[1][0] == told
    assert json.loads((tmp_path / "p.json").read_text("utf-8"))["images"][0]["file"] == told


@pytest.mark.usefixtures("isolated")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("{folder} --model {folder}/none", "does not exist"),
        ("{folder}/none --model {finished}", "does not exist"),
        ("{folder} --model {finished} --top-k 0", "--top-k=0"),
        ("{folder} --model {finished} --mean 0.1 0.2", "mean=(0.1, 0.2)"),
        ("--model {finished}", "give at least one image"),
    ],
)
def test_bad_flags_end_in_one_message(
    words: str, told: str, finished: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word.format(folder=folder, finished=finished) for word in words.split()]
    status, out, err = ended(lambda: program(given), capsys)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert told in err
