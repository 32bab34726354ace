"""The CSV table of all finished runs in a folder. Columns that a user adds are kept."""

import contextlib
import fcntl
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxcnn.config.experiment import PLACES, RESOLVED, ExperimentConfig, TransferConfig, to_json
from jaxcnn.errors import InputError, MachineError, reason
from jaxcnn.files import TEMPORARY, write_text
from jaxcnn.runs.reading import read_json, read_summary
from jaxcnn.runs.streams import warn
from jaxcnn.runs.summary import SUMMARY, Summary
from jaxcnn.runs.tables import csv_text, read_table

# Settings that have a column anyway.
_IN_SUMMARY = ("seed", "data.name", "freeze.mask", "freeze.frozen_stages", "copied_stages")


class _Run(NamedTuple):
    name: str
    """Name of the folder, so that copied and renamed runs differ."""
    summary: Summary
    settings: dict[str, Any]
    """By dotted name."""
    finished_at: float


class _UserColumns(NamedTuple):
    """The columns that a user added to a log."""

    columns: Sequence[str]
    rows: dict[str, list[str]]
    """Cells of these columns by the run's name, in the log's order."""


def log_path(runs_dir: Path, *, transfers: bool) -> Path:
    """Path of the log of transfers, or of all other runs."""
    return runs_dir / ("transfer_learning_logs.csv" if transfers else "experiment_logs.csv")


def check_log(runs_dir: Path, *, transfers: bool) -> None:
    """Checks an existing log.

    Raises:
        InputError: when `update_log` could not use it.
    """
    _read_user_columns(log_path(runs_dir, transfers=transfers), own=set())


def update_log(runs_dir: Path, *, transfers: bool) -> None:
    """Rewrites a log if it has changed: one row for each finished run in the folder.

    Columns are those of `summary.json`, then the settings that differ between the runs, then the columns that a user
    added. Rows keep their order, and new ones are appended in the order in which the runs finished. A row in which the
    user wrote something is kept, even while its run is trained again or after its folder is gone. Several processes may
    call this at the same time.

    Raises:
        InputError: when the existing log is not a table with a column `name`.
        MachineError: when it cannot be written.
    """
    log = log_path(runs_dir, transfers=transfers)
    text, _ = _render(log, transfers)
    if _has_content(log, text):
        return
    try:
        with (runs_dir / f".{log.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for leftover in runs_dir.glob(f"{TEMPORARY}{log.name}-*"):  # from a killed process
                leftover.unlink(missing_ok=True)
            text, gone = _render(log, transfers)  # again, now under the lock
            write_text(log, text)
    except OSError as error:
        raise MachineError(f"cannot write {log}: {reason(error)}; free space or make {runs_dir} writable") from error
    for name in gone:
        warn(f"{log} no longer lists {name}, whose folder is gone")


def _has_content(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode()
    except OSError:
        return False


def _render(log: Path, transfers: bool) -> tuple[str, list[str]]:
    """The new content of the log, and the names of the runs that it drops because their folder is gone."""
    runs = {run.name: run for run in _finished_runs(log.parent, transfers)}
    settings = [run.settings for run in runs.values()]
    names = list(dict.fromkeys(name for each in settings for name in each))
    differing = [name for name in names if any(each.get(name) != settings[0].get(name) for each in settings)]
    own = {*SUMMARY, *names, *_settings(to_json(TransferConfig() if transfers else ExperimentConfig()))}
    user = _read_user_columns(log, own)
    rows: list[list[Any]] = [[*SUMMARY, *differing, *user.columns]]
    gone = []
    for name in dict.fromkeys([*user.rows, *runs]):
        cells = user.rows.get(name, [""] * len(user.columns))
        if run := runs.get(name):
            summary = {**run.summary, "name": name}
            rows.append([*(summary[key] for key in SUMMARY), *(run.settings.get(key) for key in differing), *cells])
        elif any(cells):  # being trained again, or renamed: keep what the user wrote
            rows.append([name, *[None] * (len(SUMMARY) + len(differing) - 1), *cells])
        elif not name or not (log.parent / name).is_dir():
            gone.append(name)
    return csv_text(rows), gone


def _finished_runs(runs_dir: Path, transfers: bool) -> list[_Run]:
    """The finished runs whose files can be read, in the order in which they finished."""
    found = []
    for path in runs_dir.glob("*/summary.json"):
        with contextlib.suppress(InputError, OSError):  # a damaged run, or a folder of another program
            summary, config = read_summary(path), read_json(path.parent / "config.json")
            if ("source" in config) == transfers:
                name = path.parent.name.encode(errors="backslashreplace").decode()
                found.append(_Run(name, summary, _settings(config), path.stat().st_mtime))
    return sorted(found, key=lambda run: (run.finished_at, run.name))


def _settings(values: dict[str, Any], where: str = "") -> dict[str, Any]:
    """The settings in a `config.json` by dotted name, without `PLACES` and without those that the summary has."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and name != RESOLVED:
            found |= _settings(value, f"{where}{name}.")
        elif f"{where}{name}" not in (*PLACES, *_IN_SUMMARY, RESOLVED):
            found[f"{where}{name}"] = value
    return found


def _read_user_columns(log: Path, own: set[str]) -> _UserColumns:
    """Reads the columns of a log that are not in `own`. If several rows have the same name, the last one counts."""
    if not log.exists() or not log.stat().st_size:
        return _UserColumns((), {})
    try:
        header, *rows = read_table(log)
        if header.count("name") != 1:
            raise InputError(f"{log} has no column `name`, or several")
    except InputError as error:
        raise InputError(f"{error}; move it away, or repair it") from error
    added = [i for i, column in enumerate(header) if column not in own and (column or any(row[i] for row in rows))]
    at = header.index("name")
    return _UserColumns([header[i] for i in added], {row[at]: [row[i] for i in added] for row in rows})
