"""The table of all runs in a folder: a view of what they left, in which a user's own columns are kept."""

import contextlib
import fcntl
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxcnn.config.experiment import PLACES, RESOLVED, ExperimentConfig, TransferConfig, to_json
from jaxcnn.errors import InputError, MachineError, reason
from jaxcnn.files import TEMPORARY, write_text
from jaxcnn.runs.folder import read_json, read_summary
from jaxcnn.runs.streams import warn
from jaxcnn.runs.summary import SUMMARY, Summary
from jaxcnn.runs.tables import csv_text, read_table

_IN_SUMMARY = ("seed", "data.name", "freeze.mask")  # settings that have a column anyway


class _Run(NamedTuple):
    name: str
    """That of its folder, so that a copy or a renamed run has its own."""
    summary: Summary
    settings: dict[str, Any]
    """By dotted name."""
    finished_at: float


class _Notes(NamedTuple):
    """What a log holds beyond what the runs tell."""

    columns: Sequence[str]
    rows: dict[str, list[str]]
    """Cells of these columns by the run's name, in the log's order."""


def log_path(runs_dir: Path, *, transfers: bool) -> Path:
    """The log of a folder's transfers, or of its other runs."""
    return runs_dir / ("transfer_learning_logs.csv" if transfers else "experiment_logs.csv")


def check_log(runs_dir: Path, *, transfers: bool) -> None:
    """Reads a log if it is there.

    Raises:
        InputError: when `update_log` would refuse it.
    """
    _read_notes(log_path(runs_dir, transfers=transfers), own=set())


def update_log(runs_dir: Path, *, transfers: bool) -> None:
    """Writes a log, unless it is up to date: a row for each finished run that is there.

    Its columns are those of `summary.json`, then each setting that differs between the runs, then those that a user
    added, matched by the run's name. Rows keep their order; new ones follow in the order in which the runs finished.
    What the user noted stays, also of a run that is trained again or whose folder is gone. Several processes may do
    this at once.

    Raises:
        InputError: when the log there is no table with a column `name`.
        MachineError: when it cannot be written.
    """
    log = log_path(runs_dir, transfers=transfers)
    text, _ = _render(log, transfers)
    if _is(log, text):
        return
    try:
        with (runs_dir / f".{log.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for leftover in runs_dir.glob(f"{TEMPORARY}{log.name}-*"):  # of a process that was killed
                leftover.unlink(missing_ok=True)
            text, gone = _render(log, transfers)  # again, now that no other process writes it
            write_text(log, text)
    except OSError as error:
        raise MachineError(f"cannot write {log}: {reason(error)}; free space or make {runs_dir} writable") from error
    for name in gone:
        warn(f"{log} no longer lists {name}, whose folder is gone")


def _is(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode()
    except OSError:
        return False


def _render(log: Path, transfers: bool) -> tuple[str, list[str]]:
    """The log as it should be, and the runs that the one there lists and whose folder is gone."""
    runs = {run.name: run for run in _finished_runs(log.parent, transfers)}
    settings = [run.settings for run in runs.values()]
    names = list(dict.fromkeys(name for each in settings for name in each))
    differing = [name for name in names if any(each.get(name) != settings[0].get(name) for each in settings)]
    own = {*SUMMARY, *names, *_settings(to_json(TransferConfig() if transfers else ExperimentConfig()))}
    notes = _read_notes(log, own)
    rows: list[list[Any]] = [[*SUMMARY, *differing, *notes.columns]]
    gone = []
    for name in dict.fromkeys([*notes.rows, *runs]):
        noted = notes.rows.get(name, [""] * len(notes.columns))
        if run := runs.get(name):
            told = {**run.summary, "name": name}
            rows.append([*(told[key] for key in SUMMARY), *(run.settings.get(key) for key in differing), *noted])
        elif any(noted):  # it is trained again at the moment, or has another name: what a user wrote stays
            rows.append([name, *[None] * (len(SUMMARY) + len(differing) - 1), *noted])
        elif not name or not (log.parent / name).is_dir():
            gone.append(name)
    return csv_text(rows), gone


def _finished_runs(runs_dir: Path, transfers: bool) -> list[_Run]:
    """Those whose files can be read, in the order in which they finished."""
    found = []
    for path in runs_dir.glob("*/summary.json"):
        with contextlib.suppress(InputError, OSError):  # a damaged folder or another program's
            summary, config = read_summary(path), read_json(path.parent / "config.json")
            if ("source" in config) == transfers:
                name = path.parent.name.encode(errors="backslashreplace").decode()
                found.append(_Run(name, summary, _settings(config), path.stat().st_mtime))
    return sorted(found, key=lambda run: (run.finished_at, run.name))


def _settings(values: dict[str, Any], where: str = "") -> dict[str, Any]:
    """The settings in a `config.json` by dotted name, without those that say where and those of the summary."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and name != RESOLVED:
            found |= _settings(value, f"{where}{name}.")
        elif f"{where}{name}" not in (*PLACES, *_IN_SUMMARY, RESOLVED):
            found[f"{where}{name}"] = value
    return found


def _read_notes(log: Path, own: set[str]) -> _Notes:
    """A log's columns beyond its own ones, and their cells; of two rows with one name, the last counts."""
    if not log.exists() or not log.stat().st_size:
        return _Notes((), {})
    try:
        header, *rows = read_table(log)
        if header.count("name") != 1:
            raise InputError(f"{log} has no column `name`, or several")
    except InputError as error:
        raise InputError(f"{error}; move it away, or mend it") from error
    added = [i for i, column in enumerate(header) if column not in own and (column or any(row[i] for row in rows))]
    at = header.index("name")
    return _Notes([header[i] for i in added], {row[at]: [row[i] for i in added] for row in rows})
