"""Which runs a study takes: cases, names, sources, and what is refused before anything is trained."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jaxcnn import InputError
from jaxcnn.cli.study import parse
from jaxcnn.config import SHALLOW, DataConfig, ExperimentConfig, FreezeConfig, OptimConfig, TransferConfig
from jaxcnn.studies.plan import SOURCE_SEEDS, Study, compare_runs, make_study

BASE = TransferConfig(name="s", source=Path("a/model.pth"), data=DataConfig("digits"))


def plan(base: ExperimentConfig = BASE, **options: Any) -> Study:
    return make_study(base, SHALLOW, **{"seeds": (0,), **options})


def told(study: Study) -> list[tuple[str, str]]:
    return [(run.case, run.config.name) for run in study.runs]


def test_values_and_seeds_are_multiplied_and_named_by_what_tells_them_apart() -> None:
    study = plan(vary={"optim.learning-rate": [0.1, 0.01], "layer_decay": [1.0, 0.5]}, seeds=(3, 4))
    assert study.folder == Path("runs/s")
    assert study.columns == ("optim.learning_rate", "freeze.layer_decay")
    assert study.baseline == study.cases[0] == "learning_rate=0.1, layer_decay=1.0"
    assert told(study)[:2] == [
        ("learning_rate=0.1, layer_decay=1.0", "learning_rate=0.1_layer_decay=1.0_seed3"),
        ("learning_rate=0.1, layer_decay=0.5", "learning_rate=0.1_layer_decay=0.5_seed3"),
    ]
    assert len(study.runs) == 8
    config = study.runs[5].config
    assert (config.seed, config.optim.learning_rate, config.freeze.layer_decay) == (4, 0.1, 0.5)
    assert config.runs_dir == study.folder
    assert study.runs[5].settings == {"optim.learning_rate": 0.1, "freeze.layer_decay": 0.5}


def test_a_name_follows_from_its_own_settings() -> None:
    few, more = (plan(vary={"head": ["fc3", "all"][:n]}, seeds=range(n)) for n in (1, 2))
    assert set(told(few)) < set(told(more))
    paths = [Path("a/b.pth"), Path("a_b.pth")]
    study = plan(vary={"source": paths})
    assert len({name for _, name in told(study)}) == 2
    assert told(study)[0] in told(plan(vary={"source": paths[::-1]}))


def test_the_preset_of_masks_is_the_four_masks() -> None:
    study = plan(preset="masks")
    assert told(study) == [(mask, f"{mask}_seed0") for mask in ("scratch", "frozen", "partial", "full")]
    assert [run.settings for run in study.runs] == [{"mask": mask} for mask in study.cases]


def test_the_preset_of_depth_freezes_every_number_of_stages() -> None:
    study = plan(preset="depth")
    assert study.cases == ("scratch", *(f"{depth} frozen" for depth in range(7)))
    assert study.runs[0].settings == {"copied_stages": 0, "frozen_stages": 0}
    assert study.runs[3].settings == {"copied_stages": 6, "frozen_stages": 2}
    assert study.runs[0].config.freeze.mask == "scratch"
    assert study.runs[3].config.freeze.frozen_stages == 2
    assert plan(preset="depth", depths=(5, 1)).cases == ("scratch", "5 frozen", "1 frozen")
    assert plan(replace(BASE, head="all"), preset="depth").cases[-1] == "4 frozen"
    assert study.sources == ()


def test_yosinskis_preset_has_controls_whose_source_learned_the_same_images() -> None:
    study = plan(preset="yosinski", depths=(1, 3), seeds=(0, 5))
    kinds = [f"{task} {n} {kind}" for task in ("other", "same") for n in (1, 3) for kind in ("frozen", "tuned")]
    assert study.cases == ("scratch", *kinds)
    by_case = {run.case: run for run in study.runs if run.config.seed == 5}
    other, same = by_case["other 3 frozen"], by_case["same 3 tuned"]
    assert other.settings == {"source_task": "other", "copied_stages": 3, "frozen_stages": 3}
    assert same.settings == {"source_task": "same", "copied_stages": 3, "frozen_stages": 0}
    assert isinstance(other.config, TransferConfig)
    assert isinstance(same.config, TransferConfig)
    assert other.config.source == BASE.source
    assert same.config.source == Path("runs/s/source_same_seed5")
    assert [source.name for source in study.sources] == ["source_same_seed0", "source_same_seed5"]
    source = study.sources[1]
    assert source.seed == SOURCE_SEEDS + 5  # other weights
    assert source.data == replace(BASE.data, split_seed=5)  # the same images
    assert source.freeze == FreezeConfig()


def test_a_study_may_train_its_sources_on_other_classes() -> None:
    base = replace(BASE, data=DataConfig("digits", classes=(5, 6), fraction=0.5))
    study = plan(base, preset="depth", source_classes=(0, 1, 2), depths=(1,), seeds=(0, 1))
    assert [source.data.classes for source in study.sources] == [(0, 1, 2), (0, 1, 2)]
    assert {source.data.fraction for source in study.sources} == {1.0}
    assert [run.config.source.name for run in study.runs if isinstance(run.config, TransferConfig)] == [
        *["source_other_seed0"] * 2,
        *["source_other_seed1"] * 2,
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing varies"),
        ({"vary": {"learning_rat": [1]}}, "vary='learning_rat' .* known are"),
        ({"vary": {"seed": [1, 2]}}, "give --seeds"),
        ({"vary": {"model.num_blocks": [1, 2]}}, "known are"),
        ({"vary": {"optim.learning_rate": []}}, "distinct values"),
        ({"vary": {"optim.learning_rate": [1.0, 1.0]}}, "distinct values"),
        ({"vary": {"optim.learning_rate": ["x"]}}, "optim.learning_rate='x'"),
        ({"vary": {"mask": ["full"]}, "preset": "masks"}, "the preset varies it"),
        ({"vary": {"frozen_stages": [1]}, "preset": "depth"}, "the preset varies it"),
        ({"preset": "breadth"}, "preset='breadth'"),
        ({"preset": "depth", "depths": (7,)}, "numbers of stages from 0 to 6"),
        ({"preset": "masks", "depths": (1,)}, "belongs to the presets"),
        ({"preset": "masks", "seeds": (1, 1)}, "distinct seeds"),
        ({"preset": "masks", "seeds": ()}, "distinct seeds"),
        ({"preset": "masks", "baseline": "half"}, "choose one of scratch; frozen; partial; full"),
        ({"vary": {"source": ["a", "b"]}, "source_classes": (1, 2)}, "not both"),
        ({"base": ExperimentConfig(), "preset": "depth"}, "for transfers"),
        ({"base": ExperimentConfig(), "vary": {"layer_decay": [0.5]}}, "known are"),
    ],
)
def test_what_makes_no_study_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(options.pop("base", BASE), **options)


def test_the_command_line_reads_values_as_what_their_fields_hold() -> None:
    words = "--source m.pth --data.name svhn --seeds 1 2 --vary optim.learning-rate 1e-3 0.01 --vary head fc3 all"
    more = "--vary optim.clip-norm None 1 --vary data.classes 1,2 3,4 --vary cache_features True false --jobs 2"
    base, options = parse([*words.split(), *more.split()])
    assert isinstance(base, TransferConfig)
    assert base.name == "study_m_to_svhn"
    assert (options["seeds"], options["preset"], options["jobs"]) == ((1, 2), None, 2)
    assert options["vary"] == {
        "optim.learning-rate": [0.001, 0.01],
        "head": ["fc3", "all"],
        "optim.clip-norm": [None, 1],
        "data.classes": [[1, 2], [3, 4]],
        "cache_features": [True, False],
    }


def test_digits_have_a_source_in_the_study_and_one_budget_for_all() -> None:
    base, options = parse(["--preset", "depth", "--target", "digits"])
    assert options["source_classes"] == (0, 1, 2, 3, 4)
    assert base.data.classes == (5, 6, 7, 8, 9)
    assert base.name == "depth_digits"
    cifar, options = parse(["--preset", "depth", "--train.epochs", "7"])
    assert options["source_classes"] == ()
    assert (cifar.name, cifar.train.epochs, cifar.optim.learning_rate) == ("depth_cifar10_to_cifar100", 7, 1e-3)


def test_training_from_new_weights_is_studied_too() -> None:
    base, options = parse(["--of", "train", "--data.name", "digits", "--vary", "model.dropout-rate", "0", "0.5"])
    assert type(base) is ExperimentConfig
    assert base.name == "study_digits"
    study = make_study(base, base.model, seeds=(0,), vary=options["vary"])
    assert [run.config.model.dropout_rate for run in study.runs] == [0, 0.5]


def test_a_flag_that_varies_twice_is_refused() -> None:
    with pytest.raises(InputError, match="--vary head is there twice"):
        parse(["--vary", "head", "fc3", "--vary", "head", "all"])


def cases(*configs: ExperimentConfig) -> list[str]:
    return [run.case for run in compare_runs(configs, Path("out")).runs]


def test_given_runs_are_compared_by_the_settings_that_differ() -> None:
    partial = [replace(BASE, freeze=FreezeConfig(mask="partial", freeze_until_block=until)) for until in (0, 1)]
    slow = replace(partial[0], optim=OptimConfig(learning_rate=1e-4), name="slow")
    study = compare_runs([partial[0], slow, replace(BASE, freeze=FreezeConfig(mask="scratch"))], Path("out"))
    assert [run.case for run in study.runs] == [
        "partial, learning_rate=0.001",
        "partial, learning_rate=0.0001",
        "scratch, learning_rate=0.001",
    ]
    assert study.columns == ("mask", "optim.learning_rate")
    assert study.runs[1].settings == {"mask": "partial", "optim.learning_rate": 1e-4}
    assert study.baseline == "partial, learning_rate=0.001"
    assert cases(*partial) == ["partial, freeze_until_block=0", "partial, freeze_until_block=1"]
    assert cases(BASE, replace(BASE, data=DataConfig("cifar100"), seed=1)) == ["full, digits", "full, cifar100"]
    assert cases(BASE, ExperimentConfig(data=BASE.data)) == ["full, source=a/model.pth", "full"]
    with pytest.raises(InputError, match=r"^s and t have the same settings and seed; give only one of them$"):
        cases(BASE, replace(BASE, name="t", device="cpu"))


def test_runs_of_two_seeds_may_have_a_source_each() -> None:
    def run(seed: int, source: str, split_seed: int) -> TransferConfig:
        return replace(BASE, seed=seed, source=Path(source), data=replace(BASE.data, split_seed=split_seed))

    assert cases(run(0, "a", 5), run(1, "b", 6)) == ["full", "full"]
    assert cases(run(0, "a", 5), run(1, "b", 5), run(1, "a", 5)) == [f"full, source={name}" for name in "aba"]
    assert cases(run(0, "a", 5), run(1, "a", 5), run(1, "a", 6)) == [f"full, split_seed={n}" for n in (5, 5, 6)]
