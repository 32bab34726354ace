"""A run's network as a folder to hand on: what is in it, and that it works elsewhere."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import distribution, distributions
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from packaging.requirements import Requirement
from PIL import Image
from refusals import message
from safetensors.torch import load_file, save_file
from tiny_run import MODEL, TINY, ended, rows, weights

import jaxcnn
from jaxcnn.cli.publish import program
from jaxcnn.data.sets import load_dataset
from jaxcnn.errors import MachineError
from jaxcnn.runs.model_card import About
from jaxcnn.runs.publish import publish
from jaxcnn.weights import onnx_file, pytorch_network

pytestmark = pytest.mark.usefixtures("own_cache")

ROOT = Path(__file__).parent.parent
DIGITS = load_dataset(TINY.data, input_size=8, in_channels=1, seed=0)
FILES = {"README.md", "config.json", "confusion.png", "curves.png", "model.py", "model.safetensors"}


@pytest.fixture(scope="module")
def published(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "digits"
    publish(finished, folder, About(license="mit"))
    return folder


def pixels() -> torch.Tensor:
    """The first 64 test images, uint8 (64, 1, 8, 8)."""
    return torch.from_numpy(DIGITS.test.images[:64].transpose(0, 3, 1, 2).copy())


def wanted(finished: Path) -> np.ndarray:
    return np.load(finished / "results/probabilities.npy")[:64]


ALONE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"jax", "flax", "optax", "jaxcnn", "experiments", "numpy", "PIL", "sklearn"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
folder, given = sys.argv[1:]
sys.path.insert(0, folder)
from model import load
from safetensors.torch import load_file

classifier, images = load(folder), load_file(given)["images"]
probabilities = classifier.predict_proba(images)
names = [classifier.class_names[i] for i in probabilities.argmax(1)]
assert classifier.predict(images) == classifier.predict(list(images)) == names
assert {"jax", "numpy", "jaxcnn"}.isdisjoint(sys.modules)
print(probabilities.tolist())
"""


def probabilities_elsewhere(python: Path | str, published: Path, folder: Path) -> np.ndarray:
    """Of the 64 images, by another Python with the published folder and nothing of this project."""
    shutil.copytree(published, folder / "model")
    save_file({"images": pixels()}, folder / "images.safetensors")
    words = [python, "-I", "-W", "ignore", "-c", ALONE, "model", "images.safetensors"]
    done = subprocess.run(list(map(str, words)), cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return np.array(json.loads(done.stdout))


def test_the_folder_alone_gives_the_runs_probabilities(published: Path, finished: Path, tmp_path: Path) -> None:
    found = probabilities_elsewhere(sys.executable, published, tmp_path)
    np.testing.assert_allclose(found, wanted(finished), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_the_folder_gives_them_in_an_environment_of_torch_and_safetensors(
    published: Path, finished: Path, tmp_path: Path
) -> None:
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    installed = {each.name.lower().replace("_", "-") for each in distributions()}
    ahead, there = ["torch", "safetensors"], set()
    while ahead:
        if (name := ahead.pop().lower().replace("_", "-")) in there or name not in installed:
            continue
        there.add(name)
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(found.locate_file(top)))
        needed = map(Requirement, found.requires or ())
        ahead += [each.name for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
    assert "numpy" not in there
    assert not (packages / "jax").exists()
    python = environment / "bin" / "python"
    np.testing.assert_allclose(
        probabilities_elsewhere(python, published, tmp_path), wanted(finished), atol=1e-5, rtol=0
    )


def test_the_folder_is_read_as_any_weights_are(published: Path, finished: Path) -> None:
    assert {path.name for path in published.iterdir()} == FILES
    model = jaxcnn.load(published)
    assert (model.config, model.card, model.assumed, model.notes) == (MODEL, jaxcnn.load(finished).card, (), ())
    np.testing.assert_allclose(model.predict_proba(DIGITS.test.images[:64]), wanted(finished), atol=1e-6, rtol=0)
    for name, tensor in weights(finished).items():
        assert torch.equal(load_file(published / "model.safetensors")[name], tensor)
    assert (published / "model.safetensors").stat().st_mode == (published / "config.json").stat().st_mode
    assert (published / "confusion.png").read_bytes() == (finished / "confusion.png").read_bytes()


def test_the_card_tells_what_the_run_did_and_nothing_of_this_machine(published: Path, finished: Path) -> None:
    card = (published / "README.md").read_text()
    summary = json.loads((finished / "summary.json").read_text())
    _, front, body = card.split("---\n", 2)
    told = yaml.safe_load(front)
    assert (told["license"], told["datasets"], told["metrics"]) == ("mit", ["digits"], ["accuracy"])
    (result,) = told["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == pytest.approx(summary["test_accuracy"] / 100, abs=1e-6)
    assert f"**{summary['test_accuracy']:.2f} %** of 359 images (n = 1 run, seed 0)" in body
    for row in rows(finished / "classes.csv"):
        assert f"| {row['class']} | {row['images']} | {float(row['accuracy']):.2f} |" in body
    assert f"those of epoch {summary['best_epoch']}" in body
    assert "Licence: mit." in body
    for target in ("confusion.png", "curves.png"):
        assert f"]({target})" in body
    settings = json.loads((published / "config.json").read_text())["training"]
    assert settings["optim"]["learning_rate"] == 0.01
    for file in (published / "README.md", published / "config.json"):
        assert str(finished.parent) not in file.read_text()
        assert str(Path.home()) not in file.read_text()


def test_the_examples_of_the_card_and_of_the_page_run(
    published: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = pixels()[:3]
    found = [str(label) for label in wanted(finished)[:3].argmax(1)]
    Image.fromarray(images[0, 0].numpy()).save(tmp_path / "photo.jpg", format="PNG")
    monkeypatch.syspath_prepend(published)
    monkeypatch.delitem(sys.modules, "model", raising=False)
    monkeypatch.chdir(tmp_path)
    for page in (published / "README.md", ROOT / "docs/publish.md"):
        text = re.sub(r"\"(\.|published/digits)\"", repr(str(published)), page.read_text())
        for example in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            exec(example, {"images": images})
    assert capsys.readouterr().out.splitlines() == [str(found), f"['{found[0]}']", str(found)]
    del sys.modules["model"]


def test_names_and_titles_are_text_in_the_card(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    names = ["a|b", "<script>", "[x](y)", "new\nline", "ä: #", '"', "'", "`c`", "- d", "*"]
    config = json.loads((run / "config.json").read_text())
    config["resolved"]["class_names"] = names
    (run / "config.json").write_text(json.dumps(config))
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "dataset": 'a: "b" # <i>', "top5_accuracy": None}))
    table = (run / "classes.csv").read_text().splitlines()
    quoted = ['"' + name.replace('"', '""') + '"' for name in names]
    lines = [name + line[line.index(",") :] for name, line in zip(quoted, table[1:], strict=True)]
    (run / "classes.csv").write_text("\n".join([table[0], *lines, ""]))
    publish(run, tmp_path / "out", About())
    _, front, body = (tmp_path / "out/README.md").read_text().split("---\n", 2)
    told = yaml.safe_load(front)
    assert (told["license"], told["datasets"]) == ("unknown", ['a: "b" # <i>'])
    assert "No licence is stated." in body
    table = [line for line in body.partition("### By class")[2].splitlines() if line.startswith("| ")]
    assert len(table) == 12
    assert r"| a\|b |" in body
    assert r"| new line |" in body
    assert "<script>" not in body.replace(r"\<script", "")
    assert jaxcnn.load(tmp_path / "out").card.class_names == tuple(names)
    assert pytorch_network.load(tmp_path / "out").class_names == names


def test_any_network_of_the_family_is_built_from_its_folder(tmp_path: Path) -> None:
    config = replace(
        MODEL,
        in_channels=3,
        num_classes=3,
        input_size=12,
        layers_per_block=(2, 1),
        apply_pooling=(0, 1),
        apply_bn=(0, 0),
        activation_function="silu",
    )
    network = pytorch_network.TorchCNN(config).eval()
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    told = {"model": vars(config), "class_names": list("abc"), "mean": [0.1, 0.2, 0.3], "std": [0.5] * 3}
    (tmp_path / "config.json").write_text(json.dumps({**told, "resize": "pad", "temperature": 2.0}))
    classifier = pytorch_network.load(tmp_path)
    image = torch.randint(0, 256, (1, 30, 20), dtype=torch.uint8)
    fitted = jaxcnn.data.images.fit_image(image.permute(1, 2, 0).numpy(), 12, 3, "pad")
    mean = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    with torch.no_grad():
        logits = network((torch.from_numpy(fitted.transpose(2, 0, 1) / np.float32(255)) - mean)[None] / 0.5)
    np.testing.assert_allclose(classifier.predict_proba(image), (logits / 2).softmax(1), atol=5e-3)  # of a grey level
    assert classifier.predict([image, image.expand(3, -1, -1)]) == [list("abc")[logits.argmax()]] * 2
    assert classifier.predict_proba([]).shape == (0, 3)
    for wrong in (image.float(), image[0, 0], torch.zeros(4, 2, 2, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            classifier.predict(wrong[None] if wrong.ndim == 3 else [wrong])


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_images_become_squares_as_in_training(resize: str) -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        height, width = generator.integers(1, 80, 2)
        size, channels = int(generator.choice([8, 17, 32])), int(generator.choice([1, 3]))
        image = generator.integers(0, 256, (height, width, channels), np.uint8)
        found = pytorch_network.resize_square(torch.from_numpy(image.transpose(2, 0, 1).copy()), size, resize)
        ours = jaxcnn.data.images.fit_image(image, size, channels, resize).transpose(2, 0, 1)
        difference = np.abs(found.numpy().astype(int) - ours)
        assert difference.max() <= 1  # Pillow takes rows or columns first, whichever is less work
        assert width < height or difference.mean() < 0.01 or resize == "pad"


def test_pillows_images_are_read_as_they_are_to_be_seen(published: Path) -> None:
    classifier = pytorch_network.load(published)
    array = DIGITS.test.images[0, ..., 0]
    picture = Image.fromarray(array)
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # to be turned back by the viewer
    for one in (picture, turned):
        torch.testing.assert_close(classifier.predict_proba(one), classifier.predict_proba(pixels()[:1]))
    with pytest.raises(ValueError, match="3 channels"):
        classifier.predict(picture.convert("RGB"))


def test_a_folder_is_replaced_if_asked_and_only_if_it_was_published(
    published: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    words = [str(folder), "--model", str(finished)]
    program(words)
    assert capsys.readouterr().out == f"wrote {folder}\n"
    (folder / "README.md").write_text("older")
    status, _, err = ended(lambda: program(words), capsys)
    assert (status, err) == (2, f"error: {folder} exists; give another folder or --overwrite\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxcnn.runs.publish.write_json", lambda *_: (_ for _ in ()).throw(OSError("full")))
        for place, there in ((folder, True), (tmp_path / "other", False)):
            told = message(lambda place=place: publish(finished, place, About(), overwrite=True), MachineError)
            assert told.startswith(f"cannot write {place}: full")
            assert place.exists() == there
    assert (folder / "README.md").read_text() == "older"
    assert list(tmp_path.iterdir()) == [folder]
    program([*words, "--overwrite"])
    assert "Licence" not in (folder / "README.md").read_text().partition("No licence")[0]
    assert {path.name for path in folder.iterdir()} == FILES
    (tmp_path / "photos").mkdir()
    told = message(lambda: publish(finished, tmp_path / "photos", About(), overwrite=True))
    assert told == f"{tmp_path / 'photos'} exists and is no published model; give another folder"
    (folder / "notes.txt").write_text("mine")
    told = message(lambda: publish(finished, folder, About(), overwrite=True))
    assert told == f"{folder} holds 'notes.txt', which --overwrite would remove; give another folder"
    assert (folder / "notes.txt").read_text() == "mine"


def test_what_cannot_be_published_is_refused(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "summary.json").unlink()
    for given, about, told in (
        (run, About(), f"{run} is no folder of a finished run: it has no summary.json"),
        (tmp_path / "none", About(), "it has no config.json"),
        (finished / "model.pth", About(), "is no folder of a finished run"),
        (finished, About(license="my own"), "license='my own'"),
        (finished, About(license="mit\n"), "license='mit\\n'"),
    ):
        assert told in message(lambda given=given, about=about: publish(given, tmp_path / "out", about))
    (run / "summary.json").write_bytes((finished / "summary.json").read_bytes())
    for name, found, told in (
        ("classes.csv", "class,images\na,b\n", "classes.csv cannot be read: could not convert"),
        ("classes.csv", "name,images\na,3\n", "classes.csv has no column class"),
        ("config.json", '{"resolved": {"images": 3}}', "config.json: images=3 or"),
        ("config.json", '{"resolved": {"images": {"train": 3}}}', "config.json: images.validation=None"),
        ("config.json", '{"optim": {"learning_rate": "x"}}', "config.json: optim.learning_rate='x'"),
        ("config.json", "{", "config.json cannot be read"),
    ):
        kept = (run / name).read_bytes()
        (run / name).write_text(found)
        assert f"{run}/{told}" in message(lambda: publish(run, tmp_path / "out", About()))
        (run / name).write_bytes(kept)
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None if name == "onnxscript" else name)
    told = message(lambda: publish(finished, tmp_path / "out", About(), onnx=True))
    assert told == "--onnx needs onnxscript, which the extra onnx has: pip install 'jaxcnn[onnx]'"
    assert list(tmp_path.iterdir()) == [run]


@pytest.mark.slow
def test_the_onnx_file_gives_the_runs_probabilities(finished: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    publish(finished, tmp_path / "model", About(), onnx=True)
    assert {path.name for path in (tmp_path / "model").iterdir()} == FILES | {"model.onnx"}
    assert "uint8 (N, 1, 8, 8)" in (tmp_path / "model/README.md").read_text()
    session = onnxruntime.InferenceSession(str(tmp_path / "model/model.onnx"), providers=["CPUExecutionProvider"])
    for images in (pixels(), pixels()[:1]):
        (found,) = session.run(["probabilities"], {"pixels": images.numpy()})
        np.testing.assert_allclose(found, wanted(finished)[: len(images)], atol=1e-4, rtol=0)
