"""Configuration files: as programs and editors save them, and with mistakes."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import message
from test_cli import parsed

from jaxcnn.cli.config_file import read_config
from jaxcnn.config import (
    DEEP,
    SHALLOW,
    DataConfig,
    ExperimentConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    TransferConfig,
    from_dict,
)
from jaxcnn.config.experiment import RESOLVED, to_json
from jaxcnn.errors import InputError
from jaxcnn.runs.reading import read_json

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
        ("{\n'seed': 1}", "it is not JSON: Expecting property name enclosed in double quotes in line 2, column 1"),
        ('{"seed": 1', "it is not JSON: Expecting ',' delimiter in line 1, column 11"),
        ("", "it is not JSON: Expecting value in line 1, column 1"),
        ('{"runs_dir": "C:\\sets"}', "it is not JSON: Invalid \\escape"),
        ("seed: 1", "it is not JSON: Expecting value in line 1, column 1"),
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


# Among flags

TINY = ExperimentConfig(
    name="saved",
    runs_dir=Path("elsewhere"),
    seed=3,
    data=DataConfig("digits", archives=Path("archives"), augment="none", classes=(1, 2)),
    model=ModelConfig(8, 1, 10, (4, 8, 16, 8), (1, 2), (1, 0), (0, 1), 2, "gelu", 0.1, "xavier"),
    optim=OptimConfig("sgd", 0.1, clip_norm=1.0),
    train=TrainConfig(5, 32, None, None),
)


def save(path: Path, values: Any) -> str:
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return str(path)


def test_a_saved_configuration_is_given_back_with_other_flags_on_top(tmp_path: Path) -> None:
    path = save(tmp_path / "config.json", {**to_json(TINY), RESOLVED: {"device": "what it ran on"}})
    assert parsed("--config", path) == TINY
    changed = parsed("--seed", "9", f"--config={path}", "--model.dropout-rate", "0", "--train.epochs", "1")
    model, epochs = replace(TINY.model, dropout_rate=0.0), replace(TINY.train, epochs=1)
    assert changed == replace(TINY, seed=9, model=model, train=epochs)
    assert parsed("--config", path, "--model.preset", "shallow") == replace(TINY, model=SHALLOW)


def test_of_a_flag_given_twice_the_last_counts(tmp_path: Path) -> None:
    first, second = (save(tmp_path / f"{seed}.json", {"seed": seed}) for seed in (1, 2))
    assert parsed("--config", first, "--config", second).seed == 2
    assert parsed("--model.preset", "shallow", "--model.preset", "deep").model == DEEP
    assert parsed("--seed", "1", "--seed", "2").seed == 2


def test_a_configuration_may_name_only_what_differs_from_the_defaults(tmp_path: Path) -> None:
    path = save(tmp_path / "config.json", {"train": {"epochs": 2}})
    assert read_config(Path(path), ExperimentConfig) == ExperimentConfig(train=TrainConfig(epochs=2))


NAMES = sorted({f.name for f in fields(TransferConfig)} | {f.name for f in fields(ModelConfig)} | {"nonsense", ""})
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**300, 10**400)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["adam", "none", "cifar10", "cpu", "/", "..", "\ud800", "\0"])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)


def places(values: dict[str, Any]) -> list[tuple[str, ...]]:
    inside = [(name, *place) for name, value in values.items() if isinstance(value, dict) for place in places(value)]
    return [*((name,) for name in values), *inside]


def from_json_or_refused(kind: type[ExperimentConfig], values: Any) -> None:
    try:
        config = from_dict(kind, values)
    except InputError:
        return
    assert from_dict(kind, to_json(config)) == config
    assert isinstance(config.run_name, str)


KINDS = st.sampled_from([ExperimentConfig, TransferConfig])


@given(KINDS, JSON)
def test_any_json_is_a_configuration_or_refused(kind: type[ExperimentConfig], values: Any) -> None:
    from_json_or_refused(kind, values)


@pytest.mark.slow
@settings(max_examples=500)
@given(KINDS, st.data(), JSON)
def test_any_json_in_the_place_of_a_setting_is_taken_or_refused(
    kind: type[ExperimentConfig], data: st.DataObject, value: Any
) -> None:
    values = to_json(kind())
    *parents, last = data.draw(st.sampled_from(places(values)))
    node = values
    for parent in parents:
        node = node[parent]
    node[last] = value
    from_json_or_refused(kind, values)


@pytest.mark.parametrize("depth", [10, 500, 900, 950, 980, 1000, 100_000])
def test_nesting_of_any_depth_is_refused(depth: int, tmp_path: Path) -> None:
    path = save(tmp_path / "config.json", '{"train": ' * (depth % 2) + "[" * depth + "]" * depth + "}" * (depth % 2))
    with pytest.raises(InputError, match=r"config\.json"):
        read_config(Path(path), ExperimentConfig)
