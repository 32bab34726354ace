"""Running a study; for programs and notebooks."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from jaxcnn.config.experiment import CONTINUE, Existing, ExperimentConfig, TransferConfig
from jaxcnn.errors import InputError
from jaxcnn.runs.console import Terminal
from jaxcnn.runs.folder import source_digest
from jaxcnn.runs.run import open_source, plan, run_experiment
from jaxcnn.runs.streams import only_warns
from jaxcnn.runs.style import Figures
from jaxcnn.runs.summary import Summary
from jaxcnn.studies.cluster import open_executor
from jaxcnn.studies.execute import Executor, Outcome, Turns, one_by_one
from jaxcnn.studies.plan import Preset, Study, make_study
from jaxcnn.studies.records import Comparison, Finished, Row
from jaxcnn.studies.report import print_comparison, write_report
from jaxcnn.studies.rows import make_row, write_rows
from jaxcnn.weights.transfer import copied_stages


class StudyResult(NamedTuple):
    """The result of a study."""

    rows: list[Row]
    """The finished runs in the order of the plan, as in `results.csv`."""
    comparison: Comparison
    failed: list[str]
    """Names of the runs that failed."""
    folder: Path
    """With `results.csv`, `study.html` and the rest."""


def study(
    base: ExperimentConfig,
    *,
    seeds: Sequence[int] = (0,),
    vary: Mapping[str, Sequence[Any]] | None = None,
    preset: Preset | None = None,
    depths: Sequence[int] = (),
    source_classes: Sequence[int] = (),
    baseline: str = "",
    figures: Figures = "svg",
    pictures: bool = False,
    overwrite: bool = False,
    jobs: int | None = None,
    cluster: str | None = None,
) -> StudyResult:
    """Trains and compares settings over seeds.

    A repeated call continues: finished runs are not trained again, and interrupted ones go on. If a run fails, the
    others are still trained.

    Example:
        ```python
        result = study(TransferConfig(source=Path("runs/cifar10")), preset="depth", seeds=(0, 1, 2))
        accuracies = {row["run"]: row["test_accuracy"] for row in result.rows}
        ```

    Args:
        base: the settings that all runs share. Its name is that of the study's folder in its `runs_dir`.
        seeds: seeds of the runs.
        vary: values by field, such as `optim.learning_rate`; `freeze.` may be left out. Every combination is trained.
        preset: masks: the four masks; depth: every stage copied, each number of them frozen, and scratch; yosinski: n
            stages copied, frozen or not, from the source's task and from the same task, and scratch.
        depths: the numbers of stages for depth and yosinski; all if empty.
        source_classes: train the sources too, one for each seed, on these classes of the same data set, with
            `base.model` as the network.
        baseline: the case to compare to; if empty, the first.
        figures: the format of the figures; the page has SVG ones in any case.
        pictures: draw the figures of each run too, and write its page.
        overwrite: delete existing runs and start again.
        jobs: train this many runs at the same time, in processes that share this machine's processors evenly.
        cluster: train on the workers of a Dask scheduler at this address. Both need the extra `cluster`.

    Raises:
        InputError: before training, when an argument or a run's folder is unusable; after it, when every run failed.
    """
    base = base if base.name else replace(base, name=f"study_{base.data.title}")
    trains_source = bool(source_classes) or not isinstance(base, TransferConfig)
    model = base.model if trains_source or not isinstance(base, TransferConfig) else open_source(base).config
    planned = make_study(
        base, model, seeds=seeds, vary=vary, preset=preset, depths=depths, source_classes=source_classes,
        baseline=baseline,
    )  # fmt: skip
    with open_executor(jobs=jobs, cluster=cluster) as (execute, at_once):
        existing = Existing(overwrite=overwrite)
        return run_study(planned, existing, figures=figures, pictures=pictures, execute=execute, at_once=at_once)


def run_study(
    study: Study,
    existing: Existing = CONTINUE,
    *,
    figures: Figures = "svg",
    pictures: bool = False,
    execute: Executor = one_by_one,
    at_once: int = 1,
) -> StudyResult:
    """Trains the runs of a study that are not finished, and compares all of them.

    Args:
        study: the plan.
        existing: what to do with existing runs.
        figures: the format of the figures.
        pictures: draw the figures of each run too, and write its page.
        execute: trains the runs.
        at_once: number of runs that it trains at the same time.

    Raises:
        InputError: before training, when the study's folder holds a run, or a run's settings or folder are unusable;
            after it, when a source has changed meanwhile, or every run failed.
    """
    console = Terminal(soft_wrap=True)
    if (study.folder / "config.json").exists():
        raise InputError(f"{study.folder} holds a run; give the study another name")
    found = _check_runs(study, existing)
    summaries = {name: summary for name, (summary, _) in found.items() if summary is not None}
    configs = [*study.sources, *(run.config for run in study.runs)]
    print_plan(console, study, len(summaries))
    turns = Turns(console, len(configs), done=len(summaries), at_once=at_once)
    train = partial(run_experiment, existing=existing, figures=figures if pictures else None)
    failed: dict[str, str] = {}
    for outcome in execute([each for each in configs if each.run_name not in summaries], train, turns):
        _record(outcome, summaries, failed)
        name = outcome.config.run_name
        _, digest = found[name]
        if digest and outcome.summary and source_digest(outcome.config.runs_dir / name) not in (None, digest):
            raise InputError(f"the weights that {name} started from have changed meanwhile; repeat the comparison")
        with only_warns(str(study.folder / "results.csv")):
            rows = [each.row for each in _finished(study, summaries)]
            write_rows(study.folder / "results.csv", study.columns, rows)
    finished = _finished(study, summaries)
    if not finished:
        raise InputError(f"all {len(study.runs)} runs of {study.folder} failed: {next(iter(failed.values()))}")
    comparison = write_report(study, finished, list(failed), figures)
    print_comparison(console, comparison, study.folder)
    return StudyResult([each.row for each in finished], comparison, list(failed), study.folder)


def print_plan(console: Console, study: Study, finished: int) -> None:
    """Prints what a study compares and how many runs it takes."""
    seeds = dict.fromkeys(run.config.seed for run in study.runs)
    sources = f", and {len(study.sources)} sources" if study.sources else ""
    lines = [
        f"{study.folder}: {len(study.cases)} cases, {len(seeds)} seeds, {len(study.runs)} runs{sources}; "
        f"{finished} are finished",
        f"cases: {'; '.join(study.cases)}. They are compared to {study.baseline}",
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False)


def _check_runs(study: Study, existing: Existing) -> dict[str, tuple[Summary | None, str | None]]:
    """Checks all runs. Returns by name the summary, if a run is finished, and the digest of its source, if that exists.

    Raises:
        InputError: when a run's settings or its folder are unusable.
    """
    found: dict[str, tuple[Summary | None, str | None]] = {}
    trained = {each.runs_dir / each.run_name: each for each in study.sources}
    for config in [*study.sources, *(run.config for run in study.runs)]:
        source = trained.get(config.source) if isinstance(config, TransferConfig) else None
        if source is not None and isinstance(config, TransferConfig) and found[source.run_name][0] is None:
            copied_stages(config, source.model)  # the source does not exist yet, so no more can be checked
            found[config.run_name] = None, None
        else:
            planned = plan(config, existing)
            found[config.run_name] = planned.summary, planned.resolved.get("source_digest")
    return found


def _record(outcome: Outcome, summaries: dict[str, Summary], failed: dict[str, str]) -> None:
    if outcome.summary is None:
        failed[outcome.config.run_name] = outcome.error or "no result"
    else:
        summaries[outcome.config.run_name] = outcome.summary


def _finished(study: Study, summaries: Mapping[str, Summary]) -> list[Finished]:
    """The runs that have a summary (by the run's name), in the plan's order."""
    return [
        Finished(run.case, run.config.runs_dir / name, make_row(run.config, run.settings, summaries[name]))
        for run in study.runs
        if (name := run.config.run_name) in summaries
    ]
