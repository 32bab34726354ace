"""Configurations as editors save them."""

import json
from pathlib import Path

import pytest
from refusals import message

from jaxcnn.cli.config_file import read_config
from jaxcnn.config import ExperimentConfig
from jaxcnn.errors import InputError
from jaxcnn.runs.folder import read_json

TEXT = '{\r\n  "name": "größe",\r\n  "train": {"epochs": 2}\r\n}\r\n'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_configuration_is_read_in_every_unicode_encoding(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(TEXT.encode(encoding))
    config = read_config(path, ExperimentConfig)
    assert (config.name, config.train.epochs) == ("größe", 2)
    assert read_json(path) == {"name": "größe", "train": {"epochs": 2}}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{\n  "seed": 1,\n}', "JSON has no comma before a closing bracket; remove the one in line "),
        ('{"data": {"classes": [1, 2, ]}}', "JSON has no comma before a closing bracket; remove the one in line 1, "),
        ('{"seed": 1,\n // the first\n "name": "a"}', "JSON has no comments; remove the one in line 2, column 2"),
        ('{"seed": 1 # the first\n}', "JSON has no comments; remove the one in line 1, column 12"),
        ('/* mine */ {"seed": 1}', "JSON has no comments; remove the one in line 1, column 1"),
        ("{\n'seed': 1}", "it is no JSON: Expecting property name enclosed in double quotes in line 2, column 1"),
        ('{"seed": 1', "it is no JSON: Expecting ',' delimiter in line 1, column 11"),
        ("", "it is no JSON: Expecting value in line 1, column 1"),
        ('{"runs_dir": "C:\\sets"}', "it is no JSON: Invalid \\escape"),
        ("seed: 1", "it is no JSON: Expecting value in line 1, column 1"),
        ('{"seed": 1, "name": "a", "seed": 2}', "'seed' is there twice; remove one of them"),
        ('{"train": {"epochs": 1, "epochs": 1}}', "'epochs' is there twice; remove one of them"),
    ],
)
def test_what_is_no_json_is_told_with_its_place(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for data in (text.encode(), text.replace("\n", "\r\n").encode("utf-8-sig")):
        path.write_bytes(data)
        assert message(lambda: read_config(path, ExperimentConfig)).startswith(
            f"cannot read the configuration {path}: {told}"
        )


def test_another_encoding_is_told_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes('{"name": "größe"}'.encode("cp1252"))
    told = message(lambda: read_config(path, ExperimentConfig))
    assert "can't decode byte 0xf6" in told
    assert told.endswith("; save it as UTF-8")
    with pytest.raises(InputError, match="can't decode byte"):
        read_json(path)


def test_numbers_that_json_has_not_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for number in (float("nan"), float("inf")):
        path.write_text(json.dumps({"optim": {"learning_rate": number}}))
        assert "learning_rate" in message(lambda: read_config(path, ExperimentConfig))
