"""All rows of the benchmark, and how each is measured."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from experiments.bench import gpu, jax_program, stock
from experiments.bench import processes as own
from experiments.bench.flops import step_flops
from experiments.bench.forms import FORMS, HEAD_FORMS, Work, torch_forms
from experiments.bench.measure import Group, Program, Row, Skipped, matches, rates, repeat, take_turns
from experiments.bench.pillow import Transform
from experiments.bench.pytorch_program import (
    EAGER,
    Batches,
    CachedFeatures,
    Form,
    evaluate,
    in_memory,
    make_loader,
    make_trainer,
    train,
)
from experiments.bench.setting import MASKS, Setting, freeze, load_images
from jaxcnn.config import Mask
from jaxcnn.data.sets import CIFAR10_STANDARDISATION
from jaxcnn.errors import InputError

MATMUL, PRODUCTS = 2048, 4
MATMUL_ROWS = ("machine_matmul", "matmul_share", "matmul_share_xla")


def step_rows(mask: Mask, setting: Setting, skipped: Skipped) -> list[Row]:
    """Training steps with this mask, in all forms. With the full mask, also the rows derived from them."""
    name, full = f"step_{mask}", mask == "full"
    frozen_blocks = {"full": 0, "partial": freeze(mask).freeze_until_block + 1}.get(mask, setting.model.num_blocks)
    # PyTorch's images are standardised already
    batches = in_memory(load_images(setting, setting.steps * setting.batch_size), setting.batch_size)
    forms = {"pytorch": EAGER} if skipped(name) else FORMS
    works, note = torch_forms(partial(torch_training, setting, frozen_blocks), batches, forms)
    programs = {"jaxcnn": jax_program.train_steps(setting, mask), **bind(batches, works)}
    if not skipped(name):
        programs["jaxcnn_bf16"] = jax_program.train_steps(setting, mask, precision="bfloat16")
    if full and not skipped("stock_step_full"):
        programs["stock"] = stock.train_steps(setting)
    if full and not all(map(skipped, MATMUL_ROWS)):
        programs["jax_matmul"] = jax_program.matmul(MATMUL, PRODUCTS)
        programs["torch_matmul"] = torch_matmul(MATMUL, PRODUCTS)
    seconds = take_turns(programs, setting.rounds)
    speed = rates(seconds, setting.steps * setting.batch_size)
    columns = {column: speed[column] for column in speed if column.startswith(("jaxcnn", "pytorch"))}
    rows = [Row(name, f"training step, {WHAT[mask]}, batch {setting.batch_size}", "images/s", columns, note=note)]
    if "stock" in speed:
        both = {"jaxcnn": speed["stock"], "pytorch": speed["pytorch"], "product": speed["jaxcnn"]}
        what = "the same step from flax's own Conv, BatchNorm and max_pool"
        rows.append(Row("stock_step_full", what, "images/s", both, note="not this project's path", compares=False))
    if "jax_matmul" in seconds:
        rows += matmul_rows(setting, seconds, columns)
    return rows


def torch_training(setting: Setting, frozen_blocks: int, form: Form) -> Work:
    """PyTorch's training in one form."""
    return partial(train, make_trainer(setting.model, frozen_blocks=frozen_blocks, form=form))


def bind(batches: Batches, works: Mapping[str, Work]) -> dict[str, Program]:
    """Makes a program of each work by fixing its batches."""
    return {column: partial(work, batches) for column, work in works.items()}


WHAT = {"full": "all trained", "partial": "blocks 0 and 1 frozen", "frozen": "all blocks frozen"}


def matmul_rows(setting: Setting, seconds: Mapping[str, list[float]], speed: Mapping[str, list[float]]) -> list[Row]:
    """The machine's rate of large float32 products, and the share of it that full steps reach in nominal operations."""
    both = {"jaxcnn": seconds["jax_matmul"], "pytorch": seconds["torch_matmul"]}
    gflops = rates(both, PRODUCTS * 2 * MATMUL**3 / 1e9)
    machine = Row("machine_matmul", f"float32 product of {MATMUL}x{MATMUL} matrices", "GFLOP/s", gflops, compares=False)
    xla, torch_rate = machine.median("jaxcnn"), machine.median("pytorch")
    assert xla is not None
    assert torch_rate is not None
    nominal = step_flops(setting.model) / 1e9

    def share(name: str, of: str, peak: float) -> Row:
        values = {column: [each * nominal / peak for each in speed[column]] for column in ("jaxcnn", "pytorch")}
        return Row(
            name,
            f"nominal operations of the full step ({1e3 * nominal:.0f} MFLOP an image) over {of}",
            "",
            values,
            compares=False,
        )

    return [
        machine,
        share("matmul_share", "the machine's rate: the faster of both products", max(xla, torch_rate)),
        share("matmul_share_xla", "the rate of XLA's product", xla),
    ]


def torch_matmul(size: int, times: int) -> Program:
    """A program of `times` float32 products of square matrices."""
    a = torch.randn(size, size)
    return lambda: [a @ a for _ in range(times)]


def evaluate_rows(setting: Setting, _: Skipped) -> list[Row]:
    """Evaluation, in all forms."""
    batches = in_memory(load_images(setting, setting.steps * setting.batch_size), setting.batch_size)

    def torch_evaluation(form: Form) -> Work:
        return partial(evaluate, make_trainer(setting.model, frozen_blocks=0, form=form, evaluating=True))

    works, note = torch_forms(torch_evaluation, batches)
    programs = {
        "jaxcnn": jax_program.evaluation(setting),
        "jaxcnn_bf16": jax_program.evaluation(setting, "bfloat16"),
        **bind(batches, works),
    }
    speed = rates(take_turns(programs, setting.rounds), setting.steps * setting.batch_size)
    return [Row("evaluate", f"evaluation, batch {setting.batch_size}", "images/s", speed, note=note)]


def augment_rows(setting: Setting, _: Skipped) -> list[Row]:
    """Augmenting and standardising stored images; PyTorch's side is Pillow in one process."""
    count = setting.steps * setting.batch_size
    images = load_images(setting, count).images

    def transforms(lean: bool) -> Program:
        transform = Transform(CIFAR10_STANDARDISATION, augment=True, lean=lean)
        return lambda: [transform(image) for image in images]

    passes = 16  # over the same images: a turn of a few milliseconds would be distorted by the turn before it
    programs: dict[str, Program] = {
        "jaxcnn": repeat(jax_program.augmentation(setting, count), passes),
        "pytorch": transforms(lean=False),
        "pytorch_lean": transforms(lean=True),
    }
    seconds = take_turns(programs, setting.rounds)
    speed = {**rates(seconds, count), "jaxcnn": rates(seconds, passes * count)["jaxcnn"]}
    what = "AutoAugment and standardising, against one process of Pillow"
    note = "lean: without what torchvision computes again for each image"
    return [Row("augment", what, "images/s", speed, note=note)]


def epoch_rows(mask: Mask, setting: Setting, _: Skipped) -> list[Row]:
    """Epochs with AutoAugment, in all forms. PyTorch's loader runs in the same process, or in 2 workers."""
    split = load_images(setting, setting.images)
    frozen_blocks = 0 if mask == "full" else setting.model.num_blocks
    alone, two_workers = (make_loader(split, setting.batch_size, augment=True, workers=workers) for workers in (0, 2))
    works, note = torch_forms(partial(torch_training, setting, frozen_blocks), alone)
    programs = {
        "jaxcnn": jax_program.epochs(setting, mask, "autoaugment"),
        "jaxcnn_bf16": jax_program.epochs(setting, mask, "autoaugment", precision="bfloat16"),
        **bind(alone, works),
        **{f"{column}_2_workers": program for column, program in bind(two_workers, works).items()},
    }
    speed = rates(take_turns(programs, setting.rounds), setting.images)
    what = f"epoch of {setting.images:,} stored images, AutoAugment, {WHAT[mask]}"
    return [Row(f"epoch_{mask}", what, "images/s", speed, note=note)]


def cached_rows(setting: Setting, _: Skipped) -> list[Row]:
    """Epochs of the head on cached features. In PyTorch they are cached by hand."""
    split = load_images(setting, setting.images)
    plain = make_loader(split, setting.batch_size, augment=False)
    recomputing = torch_training(setting, setting.model.num_blocks, EAGER)
    network = make_trainer(setting.model, frozen_blocks=setting.model.num_blocks).network
    features = CachedFeatures(network, split, setting.batch_size)

    def head(form: Form) -> Work:
        trainer = make_trainer(setting.model, frozen_blocks=setting.model.num_blocks, form=form, head_only=True)
        return partial(train, trainer)

    works, note = torch_forms(head, features, HEAD_FORMS)
    programs = {
        "jaxcnn": jax_program.epochs(setting, "frozen", "none"),
        "jaxcnn_bf16": jax_program.epochs(setting, "frozen", "none", precision="bfloat16"),
        **bind(features, works),
    }
    passes = 4  # one takes a sixth of a second, which the turn before it distorts by a tenth
    turns = {column: repeat(program, passes) for column, program in programs.items()}
    seconds = take_turns({**turns, "pytorch_recomputed": partial(recomputing, plain)}, setting.rounds)
    speed = rates(seconds, passes * setting.images)
    speed["pytorch_recomputed"] = rates(seconds, setting.images)["pytorch_recomputed"]
    what = (
        f"epoch of {setting.images:,} images, no augmentation, all blocks frozen, features cached (PyTorch's by hand; "
        f"recomputed: not cached), {passes} a turn"
    )
    return [Row("epoch_frozen_cached", what, "images/s", speed, note=note)]


def convert_rows(setting: Setting, _: Skipped) -> list[Row]:
    """Conversion of weights."""
    with own.temporary() as folder:
        programs = {"jaxcnn": jax_program.conversion(setting, Path(folder))}
        seconds = take_turns(programs, setting.rounds)
        size = (folder / "model.pth").stat().st_size / 1e6
    what = f"model.pth of {size:.0f} MB to variables, and back to a model.pth"
    return [Row("convert_model", what, "s", seconds, more_is_better=False, note="nothing equal in PyTorch")]


def _single_row(measure: Callable[[Setting], Row]) -> Callable[[Setting, Skipped], Sequence[Row]]:
    return lambda setting, _: [measure(setting)]


def _scaled(measure: Callable[[Setting, int], list[Row]], amount: int) -> Callable[[Setting, Skipped], Sequence[Row]]:
    return lambda setting, _: measure(setting, amount)


def groups() -> list[Group]:
    """All groups of a CPU, in the order of the table."""
    derived = {"full": ("stock_step_full", *MATMUL_ROWS)}
    found = [
        *(Group((f"step_{mask}", *derived.get(mask, ())), partial(step_rows, mask)) for mask in MASKS),
        Group(("evaluate",), evaluate_rows),
        Group(("augment",), augment_rows),
        Group(("epoch_full",), partial(epoch_rows, "full")),
        Group(("epoch_frozen",), partial(epoch_rows, "frozen")),
        Group(("epoch_frozen_cached",), cached_rows),
        Group(("first_step_cold",), _single_row(partial(own.first_step, warm=False))),
        Group(("first_step_warm",), _single_row(partial(own.first_step, warm=True))),
        Group(("peak_memory",), _single_row(partial(own.peak_memory, warm=False))),
        Group(("peak_memory_warm",), _single_row(partial(own.peak_memory, warm=True))),
        Group(("open_dataset",), _single_row(own.open_dataset)),
        Group(("convert_model",), convert_rows),
    ]
    for prefix, measure, amounts in (
        ("scale_images", own.scale_images, own.IMAGE_COUNTS),
        ("scale_batch", own.scale_batch, own.BATCH_SIZES),
    ):
        for amount in amounts:
            names = (f"{prefix}_{amount}", f"{prefix}_{amount}_memory")
            found.append(Group(names, _scaled(measure, amount), default=False))
    return found


def measure(setting: Setting, patterns: Sequence[str]) -> Iterator[Row]:
    """Yields the rows whose names match one of the patterns, or all except `scale_*` if there are no patterns.

    Groups are measured one after the other. Rows of a network other than SHALLOW are called `deep/...`.

    Raises:
        InputError: when a pattern matches no row.
    """
    every = gpu.groups() if setting.device == "gpu" else groups()
    names = [name for group in every for name in group.names]
    for pattern in patterns:
        if not any(matches(name, [pattern]) for name in names):
            raise InputError(f"rows={pattern!r} names no row; there are {', '.join(names)}")
    wanted = patterns or [name for group in every if group.default for name in group.names]

    def skipped(name: str) -> bool:
        return not matches(name, wanted)

    for group in every:
        if not all(map(skipped, group.names)):
            prefix = "" if setting.preset == "shallow" else f"{setting.preset}/"
            for row in group.measure(setting, skipped):
                if not skipped(row.name):
                    yield replace(row, name=prefix + row.name)
