"""Reading a finished run back from its folder."""

from pathlib import Path
from typing import Any, NamedTuple

from jaxcnn.config.experiment import RESOLVED, ExperimentConfig, TransferConfig, from_dict, to_json
from jaxcnn.errors import InputError, require_int
from jaxcnn.runs.reading import read_json, read_summary
from jaxcnn.runs.summary import Summary
from jaxcnn.runs.tables import read_table


class Finished(NamedTuple):
    """A finished run, without its weights and arrays."""

    folder: Path
    config: ExperimentConfig
    summary: Summary
    images: dict[str, int]
    """Number of images by split: train, validation and test."""
    test_origin: str
    """Which images served as the test split; "test" if the data set has one."""
    conditions: dict[str, Any]
    """Versions, python and device of the run, as far as they were recorded."""
    classes: list[dict[str, str]]
    """The rows of `classes.csv`, each by column name."""


def read_finished(run: Path) -> Finished:
    """Reads a finished run from its folder.

    Raises:
        InputError: when the folder holds no finished run, or a file is damaged; the message names the file.
    """
    for name in ("config.json", "summary.json", "classes.csv"):
        if not (run / name).is_file():
            raise InputError(f"{run} is no folder of a finished run: it has no {name}; give one, or finish the run")
    path = run / "config.json"
    values = read_json(path)
    resolved = values.pop(RESOLVED, {})
    images, versions = resolved.get("images"), resolved.get("versions", {})
    try:
        config = from_dict(TransferConfig if "source" in values else ExperimentConfig, values)
        if not (isinstance(images, dict) and isinstance(versions, dict)):
            raise InputError(f"images={images!r} or versions={versions!r} is not usable: give objects")
        for name in ("train", "validation", "test"):
            require_int(f"images.{name}", images.get(name), least=0)
    except InputError as error:
        raise InputError(f"{path}: {error}; --overwrite begins the run again") from error
    return Finished(
        folder=run,
        config=config,
        summary=read_summary(run / "summary.json"),
        images=images,
        test_origin=str(resolved.get("test_origin", "test")),
        conditions={name: resolved[name] for name in ("versions", "python", "device") if name in resolved},
        classes=_read_classes(run / "classes.csv"),
    )


def _read_classes(path: Path) -> list[dict[str, str]]:
    header, *rows = read_table(path)
    classes = [dict(zip(header, row, strict=True)) for row in rows]
    try:
        for cells in classes:
            cells["class"]
            for name in cells.keys() - {"class"}:
                float(cells[name] or 0)  # cells are empty for a class without images
    except (ValueError, KeyError) as error:
        told = "has no column class" if isinstance(error, KeyError) else f"cannot be read: {error}"
        raise InputError(f"{path} {told}; --overwrite begins the run again") from error
    return classes


def training_settings(run: Finished) -> dict[str, Any]:
    """The settings, versions and device of a run, without the paths of files on this machine."""
    settings = to_json(run.config)
    for name in ("name", "runs_dir", "device", "model"):
        del settings[name]
    settings["data"] = {name: value for name, value in settings["data"].items() if name not in ("dir", "archives")}
    settings["data"]["name"] = run.summary["dataset"]
    if isinstance(run.config, TransferConfig):
        settings["source"] = run.config.source.name
    return {**settings, **run.conditions, "images": run.images}
