"""Planning a study: the settings to compare, the seeds, and the runs that result."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxcnn.config.experiment import ExperimentConfig, TransferConfig, case_name, flatten, to_json
from jaxcnn.config.network import ModelConfig
from jaxcnn.config.training import Mask
from jaxcnn.errors import InputError, require, require_choice, require_int
from jaxcnn.weights.transfer import copied_stages

Preset = Literal["masks", "depth", "yosinski"]
MASKS: tuple[Mask, ...] = ("scratch", "frozen", "partial", "full")

SOURCE_SEEDS = 1000
"""Added to a run's seed for the source that the study trains for it, so that both start from different weights."""

_COLUMNS = {"freeze.mask": "mask", "freeze.frozen_stages": "frozen_stages", "data.name": "dataset"}
"""Fields that have another name in a run's summary."""
_FIXED = ("name", "runs_dir", "device", "devices", "seed")
_FOLLOWING = ("freeze.mask", "freeze.frozen_stages", "copied_stages", "model.num_classes")
"""Fields that `case_name` stands for, or that the data set decides."""
_BY_SEED = {"source", "data.split_seed"}
"""Fields that may be different for each seed of one case."""


class PlannedRun(NamedTuple):
    """A run of a study."""

    case: str
    """Label of its settings; runs that differ only in their seeds share it."""
    settings: dict[str, Any]
    """The settings that vary, by the name of their column."""
    config: ExperimentConfig


@dataclass(frozen=True)
class Study:
    """Runs to compare."""

    folder: Path
    """The folder of the comparison."""
    baseline: str
    """The case that the others are compared to."""
    runs: tuple[PlannedRun, ...]
    sources: tuple[ExperimentConfig, ...] = ()
    """Runs to train first, because others start from their weights; they are not compared."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the settings that vary."""
        return tuple(self.runs[0].settings)

    @property
    def cases(self) -> tuple[str, ...]:
        """The cases in order."""
        return tuple(dict.fromkeys(run.case for run in self.runs))


class _Case(NamedTuple):
    label: str
    settings: dict[str, Any]
    changes: dict[str, Any]
    """Values by dotted field."""
    task: str = "other"
    """Whether it starts from the weights of another task or of the same one."""


def make_study(
    base: ExperimentConfig,
    model: ModelConfig,
    *,
    seeds: Sequence[int],
    vary: Mapping[str, Sequence[Any]] | None = None,
    preset: Preset | None = None,
    depths: Sequence[int] = (),
    source_classes: Sequence[int] = (),
    baseline: str = "",
) -> Study:
    """Plans a study: the cases of a preset, times each combination of the values that vary, times the seeds.

    Args:
        base: the settings that all runs share. Its name is that of the study's folder in its `runs_dir`.
        model: the network, whose stages a preset counts.
        seeds: seeds of the runs.
        vary: values by field, such as `optim.learning_rate`; `freeze.` may be left out.
        preset: masks: the four masks; depth: every stage copied, each number of them frozen, and scratch; yosinski: n
            stages copied, frozen or not, from the source's task and from the same task, and scratch.
        depths: the numbers of stages for depth and yosinski; all if empty.
        source_classes: train the sources too, one for each seed, on these classes of the same data set; `model` is
            their network.
        baseline: the case to compare to; if empty, the first.

    Raises:
        InputError: when a field or value cannot be used, or nothing varies.
    """
    vary = _resolve(base, vary or {})
    require(bool(seeds) and len(set(seeds)) == len(seeds), "seeds", tuple(seeds), "give distinct seeds, one or more")
    for seed in seeds:
        require_int("seed", seed, least=0, most=2**32 - 1 - SOURCE_SEEDS)
    if preset is not None:
        require_choice("preset", preset, Preset)
    if not isinstance(base, TransferConfig) and (preset is not None or source_classes):
        raise InputError("a preset and source classes are for transfers; vary a setting of training instead")
    if not vary and preset is None:
        raise InputError("nothing varies in this study; give --vary FIELD VALUE VALUE, or --preset")
    if source_classes and "source" in vary:
        raise InputError("source classes have the study train the source; give them or --vary source, not both")
    if depths and preset not in ("depth", "yosinski"):
        raise InputError(f"depths={tuple(depths)!r} belongs to the presets depth and yosinski")
    cases = [
        case
        for first in _preset_cases(base, model, preset, depths)
        for combination in product(*([(field, value) for value in values] for field, values in vary.items()))
        if (case := _vary(first, combination))
    ]
    folder = base.runs_dir / base.run_name
    names = _names(cases)
    sources: dict[str, ExperimentConfig] = {}
    runs = []
    for seed in seeds:
        for case in cases:
            config = _apply(replace(base, runs_dir=folder, seed=seed, name=f"{names[case.label]}_seed{seed}"), case)
            if isinstance(config, TransferConfig) and (source_classes or case.task == "same"):
                source = _source(config, model, case.task, source_classes)
                sources[source.name] = source
                config = replace(config, source=folder / source.name)
            values = flatten(to_json(config))
            settings = {
                column: value if isinstance(value, (int, float)) else values.get(_field(column), value)
                for column, value in case.settings.items()
            }
            runs.append(PlannedRun(case.label, settings, config))
    labels = [case.label for case in cases]
    require(not baseline or baseline in labels, "baseline", baseline, f"choose one of {'; '.join(labels)}")
    return Study(folder, baseline or labels[0], tuple(runs), tuple(sources.values()))


def compare_runs(configs: Sequence[ExperimentConfig], folder: Path, sources: Sequence[ExperimentConfig] = ()) -> Study:
    """The comparison of given runs, by mask (or numbers of stages) and by every other setting that is not the same.

    Runs of different seeds may have different sources and divisions of the images. These are compared as settings only
    where runs of one seed differ in them. The baseline is scratch, if it is there.

    Raises:
        InputError: when two runs have the same settings and seed.
    """
    values = [{"mask": case_name(each), **_settings(each)} for each in configs]
    varied = [field for field in dict.fromkeys(name for each in values for name in each) if _differs(field, values)]
    by_seed: dict[int, list[dict[str, Any]]] = {}
    for config, each in zip(configs, values, strict=True):
        by_seed.setdefault(config.seed, []).append(each)
    for field in _BY_SEED:
        if field in varied and not any(_differs(field, alike) for alike in by_seed.values()):
            varied.remove(field)
    runs: list[PlannedRun] = []
    names: dict[tuple[str, int], str] = {}
    for config, each in zip(configs, values, strict=True):
        settings = {field: each.get(field) for field in dict.fromkeys(["mask", *varied])}
        case = ", ".join(_label(field, value) for field, value in settings.items() if field in each)
        if other := names.get((case, config.seed)):
            raise InputError(f"{other} and {config.run_name} have the same settings and seed; give only one of them")
        names[case, config.seed] = config.run_name
        runs.append(PlannedRun(case, {_column(field): value for field, value in settings.items()}, config))
    cases = [run.case for run in runs]
    return Study(folder, "scratch" if "scratch" in cases else cases[0], tuple(runs), tuple(sources))


def _settings(config: ExperimentConfig) -> dict[str, Any]:
    """The settings of a run by dotted field, without those that follow from others."""
    left_out = {*_FIXED, *_FOLLOWING}
    if config.freeze.mask != "partial":
        left_out.add("freeze.freeze_until_block")  # it has no effect
    return {field: value for field, value in flatten(to_json(config)).items() if field not in left_out}


def _differs(field: str, values: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a field is not the same in all runs that have it. For `source`, to have none is a difference too."""
    found = [each[field] for each in values if field in each]
    return any(value != found[0] for value in found) or (field == "source" and 0 < len(found) < len(values))


def _preset_cases(
    base: ExperimentConfig, model: ModelConfig, preset: Preset | None, depths: Sequence[int]
) -> Iterator[_Case]:
    if preset is None or not isinstance(base, TransferConfig):
        yield _Case("", {}, {})
        return
    if preset == "masks":
        for mask in MASKS:
            yield _Case(mask, {"mask": mask}, {"freeze.mask": mask})
        return
    most = copied_stages(replace(base, freeze=replace(base.freeze, mask="full", frozen_stages=None)), model)
    for depth in depths:
        require(0 <= depth <= most, "depths", tuple(depths), f"give numbers of stages from 0 to {most}")
    task: dict[str, Any] = {"source_task": "none"} if preset == "yosinski" else {}
    yield _Case("scratch", {**task, "copied_stages": 0, "frozen_stages": 0}, {"copied_stages": 0, "head": "fc3"})
    if preset == "depth":
        for depth in depths or range(most + 1):
            settings: dict[str, Any] = {"copied_stages": most, "frozen_stages": depth}
            yield _Case(f"{depth} frozen", settings, {"freeze.frozen_stages": depth})
        return
    for name, depth in product(("other", "same"), depths or range(1, most + 1)):
        for kind, frozen in (("frozen", depth), ("tuned", 0)):
            settings = {"source_task": name, "copied_stages": depth, "frozen_stages": frozen}
            changes = {"copied_stages": depth, "head": "fc3", "freeze.frozen_stages": frozen}
            yield _Case(f"{name} {depth} {kind}", settings, changes, name)


def _resolve(base: ExperimentConfig, vary: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """Replaces the names of the fields by those of the configuration."""
    known = [name for name in flatten(to_json(base)) if name not in _FIXED]
    if isinstance(base, TransferConfig):
        known = [name for name in known if not name.startswith("model.")]  # the network is the source's
    else:
        known = [name for name in known if not name.startswith("freeze.") and name != "model.num_classes"]
    found: dict[str, Sequence[Any]] = {}
    for given, values in vary.items():
        name = given.replace("-", "_")
        name = "data.name" if name == "target" else name
        name = name if name in known else f"freeze.{name}"
        if name not in known:
            hint = "give --seeds" if given == "seed" else f"known are {', '.join(known).replace('freeze.', '')}"
            raise InputError(f"vary={given!r} is not usable: {hint}")
        distinct = len({json.dumps(value, default=str) for value in values}) == len(values)
        require(bool(values) and distinct and name not in found, f"vary {given}", list(values), "give distinct values")
        found[name] = values
    return found


def _vary(case: _Case, combination: Sequence[tuple[str, Any]]) -> _Case:
    """Adds changes to a case."""
    labels, settings, changes = [case.label] if case.label else [], dict(case.settings), dict(case.changes)
    for field, value in combination:
        if field in changes or _column(field) in settings:
            raise InputError(f"vary={field!r} is not usable: the preset varies it; give --depths, or no --preset")
        labels.append(_label(field, value))
        settings[_column(field)] = value
        changes[field] = value
    return _Case(", ".join(labels), settings, changes, case.task)


def _label(field: str, value: Any) -> str:
    leaf = field.rpartition(".")[2]
    return str(value) if leaf == "mask" or field == "data.name" else f"{leaf}={value}"


def _column(field: str) -> str:
    return _COLUMNS.get(field, field)


def _field(column: str) -> str:
    return next((field for field, name in _COLUMNS.items() if name == column), column)


def _apply(config: ExperimentConfig, case: _Case) -> ExperimentConfig:
    """Applies the changes of a case, all at once, because some are only valid together."""
    sections: dict[str, dict[str, Any]] = {}
    for field, value in case.changes.items():
        section, _, name = field.rpartition(".")
        sections.setdefault(section, {})[name] = value
    made = {name: replace(getattr(config, name), **values) for name, values in sections.items() if name}
    return replace(config, **sections.get("", {}), **made)


def _source(config: TransferConfig, model: ModelConfig, task: str, source_classes: Sequence[int]) -> ExperimentConfig:
    """The source of a run: trained on other classes, or on the images of the run itself."""
    data = replace(config.data, split_seed=config.seed)
    if task == "other":
        data = replace(config.data, classes=tuple(source_classes), fraction=1.0)
    return ExperimentConfig(
        name=f"source_{task}_seed{config.seed}",
        runs_dir=config.runs_dir,
        seed=SOURCE_SEEDS + config.seed,
        device=config.device,
        protocol=config.protocol,
        data=data,
        model=replace(model, num_classes=10),  # which the data set decides
        optim=config.optim,
        train=config.train,
    )


def _names(cases: Sequence[_Case]) -> dict[str, str]:
    """Names of folders by case: its label. A digest of its settings tells long or equal ones apart."""
    names = {case.label: re.sub(r"[^\w.+=-]+", "_", case.label).strip("._")[:120] for case in cases}
    often = Counter(names.values())
    for case in cases:
        name = names[case.label]
        if often[name] > 1 or not name or len(name) == 120:
            values = json.dumps(case.settings, default=str, sort_keys=True)
            names[case.label] = f"{name}_{hashlib.sha256(values.encode()).hexdigest()[:6]}"
    return names
