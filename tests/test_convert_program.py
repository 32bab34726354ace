"""The conversion utility, as a command."""

import sys
from pathlib import Path

import pytest
import torch
from tiny_run import weights

from jaxcnn.cli.convert import Flags, convert
from jaxcnn.errors import InputError

pytestmark = pytest.mark.usefixtures("own_cache")


def command(monkeypatch: pytest.MonkeyPatch, *argv: object) -> None:
    import runpy

    monkeypatch.setattr(sys, "argv", ["convert", *map(str, argv)])
    monkeypatch.delitem(sys.modules, "experiments.convert", raising=False)  # or runpy warns
    runpy.run_module("experiments.convert", run_name="__main__")


def test_weights_go_through_every_form_unchanged(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file

    pth, checkpoint, tensors = (tmp_path / name for name in ("again.pth", "checkpoint", "weights.safetensors"))
    for source, destination in ((finished / "model.pth", checkpoint), (checkpoint, pth), (pth, tensors)):
        command(monkeypatch, source, destination, "--verify", *(["--input-size", 8] if source == pth else []))
        out = capsys.readouterr().out
        assert f"wrote {destination}" in out
        assert ("assumed" in out) == (source == pth)
        difference = float(out.partition("random images: ")[2].split()[0])
        assert difference < 1e-4
    wanted = weights(finished)
    for found in (torch.load(pth, weights_only=True), load_file(tensors)):
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor), name
    command(monkeypatch, finished, tmp_path / "folder.pth")
    assert torch.load(tmp_path / "folder.pth", weights_only=True).keys() == wanted.keys()


def test_what_a_file_holds_besides_is_printed(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {f"net.{name}": value for name, value in weights(finished).items() if "num_batches" not in name}
    torch.save({"state_dict": given | {"loss[bold].weight": torch.ones(2)}, "epoch": 3}, tmp_path / "other.pth")
    convert(Flags(tmp_path / "other.pth", tmp_path / "plain.pth", input_size=8))
    lines = capsys.readouterr().out.splitlines()
    assert lines[3:5] == [
        "not in the file, and set to 0: blocks.0.1.num_batches_tracked",
        "ignored: epoch, loss[bold].weight",
    ]
    for name, tensor in weights(finished).items():
        found = torch.load(tmp_path / "plain.pth", weights_only=True)[name]
        assert torch.equal(found, torch.zeros_like(tensor) if "num_batches" in name else tensor), name


def test_a_name_is_printed_as_it_is(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(Flags(finished, tmp_path / "of[bold]run[/x].pth"))
    assert f"wrote {tmp_path}/of[bold]run[/x].pth" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["taken.pth", "taken"])
def test_a_conversion_replaces_nothing_unless_asked_to(name: str, finished: Path, tmp_path: Path) -> None:
    destination = tmp_path / name
    convert(Flags(finished, destination))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"taken.* exists"):
        convert(Flags(finished, destination))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    convert(Flags(finished, destination, overwrite=True))


def broken(folder: Path, finished: Path) -> dict[str, Path]:
    (folder / "text.pth").write_text("no weights")
    (folder / "text.safetensors").write_text("no weights")
    (folder / "cut.pth").write_bytes((finished / "model.pth").read_bytes()[:-3000])
    (folder / "empty").mkdir()
    torch.save({"layer.weight": torch.zeros(2, 2)}, folder / "foreign.pth")
    torch.save({**weights(finished), "fc3.bias": torch.zeros(3)}, folder / "shape.pth")
    torch.save({"model": Path()}, folder / "code.pth")
    torch.save([1, 2], folder / "list.pth")
    return {path.name: path for path in folder.iterdir()} | {"missing.pth": folder / "missing.pth"}


@pytest.mark.parametrize(
    "name",
    [
        *("text.pth", "text.safetensors", "cut.pth", "empty", "foreign.pth", "shape.pth", "code.pth", "list.pth"),
        "missing.pth",
    ],
)
def test_what_holds_no_weights_ends_in_status_2_and_one_message(
    name: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = broken(tmp_path, finished)[name]
    with pytest.raises(SystemExit) as end:
        command(monkeypatch, source, tmp_path / "out.pth")
    out, err = capsys.readouterr()
    assert end.value.code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert not (tmp_path / "out.pth").exists()
