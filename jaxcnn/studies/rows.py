"""The results of a study as a table with a row for each run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcnn.config.experiment import RESOLVED, ExperimentConfig
from jaxcnn.files import write_text
from jaxcnn.runs.reading import read_json
from jaxcnn.runs.summary import SUMMARY, Summary
from jaxcnn.runs.tables import csv_text
from jaxcnn.studies.records import Row


def make_row(config: ExperimentConfig, settings: Mapping[str, Any], summary: Summary) -> Row:
    """The row of a finished run, with the settings that vary in its study. What its folder does not say is None."""
    resolved = read_json(config.runs_dir / config.run_name / "config.json").get(RESOLVED, {})
    return {
        "run": config.run_name,
        **settings,
        "seed": config.seed,
        **{name: value for name, value in summary.items() if name != "name" and name not in settings},
        "test_images": resolved.get("images", {}).get("test"),
        "processor": resolved.get("processor"),
        "threads": resolved.get("threads"),
    }


def write_rows(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Writes `results.csv`: the name of the run, then the settings that vary, then the rest.

    Raises:
        MachineError: when it cannot be written.
    """
    names = list(dict.fromkeys(["run", *columns, "seed", *SUMMARY, "test_images", "processor", "threads"]))
    names.remove("name")
    write_text(path, csv_text([names, *([row[name] for name in names] for row in rows)]))
