"""The benchmark does the same work on both sides, and its figures are computed correctly. No time is asserted."""

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.bench import __main__ as program
from experiments.bench import forms, jax_program, processes, rows, show
from experiments.bench.child import Clock
from experiments.bench.flops import forward_flops, layers, step_flops
from experiments.bench.measure import Row, take_turns
from experiments.bench.pillow import Transform
from experiments.bench.pytorch_program import CachedFeatures, evaluate, in_memory, make_loader, make_trainer, train
from experiments.bench.setting import Setting, load_images
from experiments.bench.stock import StockCNN, stock_variables
from jaxcnn import CNN, DEEP, SHALLOW, InputError, ModelConfig, init_variables
from jaxcnn.cli.main import main
from jaxcnn.data.augment import standardise
from jaxcnn.data.sets import CIFAR10_STANDARDISATION
from jaxcnn.weights.convert import to_torch
from jaxcnn.weights.pytorch_network import TorchCNN, torch_network

SMALL = ModelConfig(
    hidden_dims=(8, 16, 24, 12),
    layers_per_block=(2, 1),
    apply_pooling=(1, 1),
    apply_bn=(1, 0),
    num_blocks=2,
    dropout_rate=0.0,
)
TINY = Setting(batch_size=4, rounds=1, steps=1, images=8)


def counted(config: ModelConfig, frozen_blocks: int, backward: bool) -> int:
    network = make_trainer(config, frozen_blocks=frozen_blocks).network
    with FlopCounterMode(display=False) as counter:
        logits = network(torch.zeros(2, 3, 32, 32))
        if backward:
            logits.sum().backward()
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("config", [SHALLOW, DEEP, SMALL], ids=["shallow", "deep", "small"])
def test_nominal_operations_are_those_that_torch_counts(config: ModelConfig) -> None:
    assert forward_flops(config) == counted(config, 0, backward=False)
    for frozen in (0, 2, config.num_blocks):
        assert step_flops(config, frozen) == counted(config, frozen, backward=True)
    norms = sum(
        p.numel() for m in TorchCNN(config).modules() if isinstance(m, torch.nn.BatchNorm2d) for p in [m.weight]
    )
    total = sum(p.numel() for p in TorchCNN(config).parameters())
    assert sum(layer.weights for layer in layers(config)) == total - 2 * norms


def test_stock_and_pytorch_networks_compute_the_products_logits() -> None:
    variables = init_variables(SMALL, jax.random.key(0))
    random = np.random.default_rng(0)
    stats = jax.tree.map(lambda a: (a + random.uniform(0, 1, a.shape)).astype(a.dtype), variables["batch_stats"])
    variables = {"params": variables["params"], "batch_stats": stats}
    images = random.standard_normal((6, 32, 32, 3), np.float32)
    ours = np.asarray(jax.jit(CNN(SMALL).apply)(variables, images))
    stock = np.asarray(jax.jit(StockCNN(SMALL).apply)(stock_variables(variables), images))
    network = torch_network(to_torch(variables, SMALL), SMALL).eval()
    with torch.inference_mode():
        theirs = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(stock, ours, atol=2e-6)
    np.testing.assert_allclose(theirs, ours, atol=2e-6)


def test_frozen_blocks_of_the_pytorch_program_do_not_move_and_the_rest_does() -> None:
    trainer = make_trainer(SMALL, frozen_blocks=1)
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    batches = in_memory(load_images(TINY, 8), 4)
    losses = [train(trainer, batches)[0] for _ in range(5)]
    assert losses[-1] < losses[0]
    for name, value in trainer.network.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("blocks.0."), name
    total, hits = evaluate(make_trainer(SMALL, frozen_blocks=0, evaluating=True), batches)
    assert total > 0
    assert 0 <= hits <= 8


def test_the_pillow_transform_standardises_as_the_product_and_lean_draws_the_same_images() -> None:
    images = load_images(TINY, 40).images
    plain = Transform(CIFAR10_STANDARDISATION, augment=False)
    got = torch.stack([plain(image) for image in images]).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(got, standardise(images, CIFAR10_STANDARDISATION), atol=1e-6)
    drawn = []
    for lean in (False, True):
        torch.manual_seed(3)
        transform = Transform(CIFAR10_STANDARDISATION, augment=True, lean=lean)
        drawn.append(torch.stack([transform(image) for image in images]).numpy())
    np.testing.assert_array_equal(*drawn)
    assert (drawn[0] != got.transpose(0, 3, 1, 2)).any()
    seen = sum(len(labels) for _, labels in make_loader(load_images(TINY, 10), 4, augment=True))
    assert seen == 10


def test_a_ratio_above_one_means_that_jaxcnn_is_better() -> None:
    faster = Row("a", "", "images/s", {"jaxcnn": [30, 10, 20], "pytorch": [10, 10, 10]})
    assert (faster.ratio, faster.ratio_spread) == (2, (1, 3))
    quicker = Row("b", "", "s", {"jaxcnn": [1.0], "pytorch": [4.0], "other": []}, more_is_better=False)
    assert (quicker.ratio, quicker.ratio_spread, quicker.versus("jaxcnn", "other")) == (4, (4, 4), None)
    alone = Row("c", "", "s", {"jaxcnn": [1.0]}, more_is_better=False)
    assert (alone.ratio, alone.ratio_spread, alone.to_dict()["pytorch"]) == (None, None, None)
    order: list[str] = []
    seconds = take_turns({name: lambda name=name: order.append(name) for name in "abc"}, 2)
    assert "".join(order) == "abc" + "abc" + "bca"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2, "c": 2}


def test_the_clock_leaves_out_the_first_step() -> None:
    clock = Clock()
    assert clock.rate() is None
    clock.marks = [(10, 5.0), (20, 6.0), (40, 8.0)]
    assert clock.rate() == 10


@pytest.mark.slow
def test_a_process_of_its_own_answers_with_time_and_memory(tmp_path: Path) -> None:
    answer = processes.run_child("first_step", TINY, tmp_path, "pytorch")
    assert answer["images_per_second"] is None  # one step
    assert answer["seconds"] > 0
    assert answer["peak_mib"] > 50
    with pytest.raises(InputError, match=r"the process that measures open of jaxcnn failed: .*no prepared CIFAR-10"):
        processes.run_child("open", replace(TINY, data_dir=str(tmp_path)), tmp_path)


ROWS = {"evaluate", "convert_model"}


@pytest.mark.slow
def test_a_run_keeps_its_rows_a_table_and_a_chart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(forms.FORMS, "pytorch_compiled")  # compilation takes long,
    evaluation = jax_program.evaluation
    monkeypatch.setattr(jax_program, "evaluation", lambda setting, *_: evaluation(setting))  # and so does bfloat16's
    paths = {kind: tmp_path / f"out.{kind}" for kind in ("json", "chart.png", "markdown", "history")}
    small: dict[str, Any] = {"rounds": 2, "batch_size": 4, "steps": 1, "images": 8}
    flags = program.Flags(
        rows=("eval*", "convert_model"),
        json=paths["json"],
        chart=paths["chart.png"],
        markdown=paths["markdown"],
        history=paths["history"],
        **small,
    )
    program.bench(flags)
    kept = json.loads(paths["json"].read_text())
    assert {row["name"] for row in kept} == ROWS
    for row in kept:
        assert {"jaxcnn", "pytorch", "ratio", "unit", "preset", "processor", "features", "versions"} <= set(row)
        assert row["forms"]["jaxcnn"]["n"] == 2
        assert row["jaxcnn"] > 0
    past = [json.loads(line) for line in paths["history"].read_text().splitlines()]
    assert past == [{name: value for name, value in row.items() if name != "command"} for row in kept]
    ratios = {row["name"]: row["ratio"] for row in kept}
    assert ratios["evaluate"] > 0
    assert ratios["convert_model"] is None
    assert {"jaxcnn", "jaxcnn_bf16", "pytorch", "pytorch_channels_last"} <= set(kept[0]["forms"])
    assert paths["chart.png"].read_bytes().startswith(b"\x89PNG")
    text = paths["markdown"].read_text()
    assert "| `evaluate` |" in text
    assert "| bfloat16 | 989 TFLOP/s |" in text
    assert "evaluate" in capsys.readouterr().out


def test_every_promised_row_is_there() -> None:
    names = [name for group in rows.groups() for name in group.names]
    assert len(names) == len(set(names))
    assert ROWS | {"step_full", "step_partial", "step_frozen", "augment", "epoch_full", "epoch_frozen"} <= set(names)
    assert {"epoch_frozen_cached", "first_step_cold", "peak_memory", "matmul_share", "scale_batch_64"} <= set(names)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (program.Flags(rows=("step_ful",)), "rows='step_ful' names no row; there are step_full, "),
        (program.Flags(rounds=0), "rounds=0"),
        (program.Flags(data=program.DataFlags(Path("nowhere"))), "data.dir='nowhere' has no prepared CIFAR-10"),
    ],
)
def test_bad_flags_end_in_one_message(flags: program.Flags, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(lambda: program.bench(flags))
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_chart_of_nothing_to_compare_is_empty(tmp_path: Path) -> None:
    show.chart(tmp_path / "chart.png", [Row("alone", "", "s", {"jaxcnn": [1.0]})])
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_a_page_keeps_what_is_outside_the_markers() -> None:
    begin, end = show.MARKERS
    page = f"above\n{begin}\nold\n{end}\nbelow\n"
    assert show.insert("new", page) == f"above\n{begin}\nnew\n{end}\nbelow\n"
    assert show.insert("new", "") == "new"
    for page in ("old", f"old {begin}", f"{end} old {begin}"):
        with pytest.raises(InputError, match="no place for the table"):
            show.insert("new", page)
    speed = (Path(__file__).parent.parent / "docs/speed.md").read_text()
    assert all(speed.count(marker) == 1 for marker in show.MARKERS)


def test_numbers_are_short() -> None:
    assert [show.number(value) for value in (None, 0.123, 12.34, 1234.5)] == ["", "0.12", "12.3", "1,234"]


def test_the_table_names_the_best_form_of_each_program() -> None:
    values = {
        "jaxcnn": [20.0],
        "jaxcnn_bf16": [10.0],
        "pytorch": [10.0],
        "pytorch_bf16_2_workers": [40.0],
        "stock": [99.0],
    }
    row = Row("step_full", "", "images/s", values)
    cells = dict(zip(show.HEADER, show.cells(row), strict=True))
    assert (cells["ratio"], cells["best ratio"]) == ("2.00", "0.50")
    assert (cells["best jaxcnn"], cells["best PyTorch"]) == ("20.0 float32", "40.0 bf16 2 workers")
    quickest = Row("b", "", "s", {"jaxcnn": [2.0], "pytorch": [4.0], "pytorch_lean": [1.0]}, more_is_better=False)
    assert (quickest.best("pytorch"), quickest.best_ratio) == ("pytorch_lean", 0.5)
    plain = show.cells(Row("c", "", "s", {"jaxcnn": [2.0], "pytorch": [4.0]}))
    assert plain[show.HEADER.index("best ratio")] == ""


def test_a_form_that_is_slow_here_or_fails_is_left_out_with_a_remark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)  # it imports the compiler
    seen: list[tuple[forms.Form, int]] = []

    def make(form: forms.Form) -> forms.Work:
        def work(batches: forms.Batches) -> None:
            seen.extend((form, len(labels)) for _, labels in batches)
            if form.compiled:
                raise RuntimeError("no compiler")
            if form.bfloat16:
                time.sleep(0.01)

        return work

    batches = in_memory(load_images(TINY, 80), 40)
    works, note = forms.torch_forms(make, batches)
    assert set(works) == {"pytorch", "pytorch_channels_last"}
    slow, failed = sorted(note.split("; "))
    assert failed == "torch.compile failed: RuntimeError"
    assert re.fullmatch(r"pytorch bf16 not timed: [\d,]+ images/s in one batch of 32, float32 [\d,]+", slow)
    assert {count for form, count in seen if form.bfloat16} == {forms.PROBE}
    assert {count for form, count in seen if form.compiled} == {40}


def test_other_forms_compute_what_eager_float32_does() -> None:
    batches = in_memory(load_images(TINY, 4), 4)
    half, fused = forms.FORMS["pytorch_bf16"], forms.HEAD_FORMS["pytorch_fused_adam"]
    losses = [evaluate(make_trainer(SMALL, frozen_blocks=0, form=f), batches)[0] for f in (forms.EAGER, half)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    losses = [train(make_trainer(SMALL, frozen_blocks=0, form=f), batches * 3)[0] for f in (forms.EAGER, fused)]
    assert losses[1] == pytest.approx(losses[0], rel=5e-2)


def test_a_head_on_cached_features_trains_as_behind_frozen_blocks() -> None:
    split = load_images(TINY, 8)
    whole = make_trainer(SMALL, frozen_blocks=2)
    head = make_trainer(SMALL, frozen_blocks=2, head_only=True)
    features = CachedFeatures(head.network, split, 8)
    assert [len(labels) for _, labels in CachedFeatures(head.network, split, 5)] == [5, 3]
    for _ in range(3):  # one batch an epoch, so that its order does not matter
        assert train(head, features)[0] == pytest.approx(train(whole, in_memory(split, 8))[0], rel=1e-5)
