"""The rows of the benchmark on a GPU. Each function takes the device from the setting, so a CPU can try them."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from experiments.bench import jax_program
from experiments.bench import processes as own
from experiments.bench.forms import GPU_FORMS
from experiments.bench.measure import Group, Program, Row, Skipped, rates, take_turns, usable
from experiments.bench.pytorch_device import Copied, Stored, stored_images, torch_device
from experiments.bench.pytorch_program import Batches, CachedFeatures, Form, make_loader, make_trainer, synchronise, train
from experiments.bench.setting import Setting, load_images
from jaxcnn.config import Augment, Mask, Precision

LARGE_BATCH = 2_048
LOADED = ("pytorch", "pytorch_bf16")
"""Forms of PyTorch that are timed with Pillow's augmentation, which bounds the epoch in any form."""
FIRST_STEP = ("jaxcnn", "jaxcnn_bf16", "pytorch", "pytorch_bf16", "pytorch_bf16_compiled")
"""Programs that are timed from the start of a process, and whose memory is measured."""

Maker = Callable[[], Program]


def jax_forms(make: Callable[[Precision], Program]) -> dict[str, Maker]:
    """This project's forms by column. float32 is true float32, as in a run."""
    return {
        "jaxcnn": partial(make, "float32"),
        "jaxcnn_tf32": lambda: jax_program.with_tf32(make("float32")),
        "jaxcnn_bf16": partial(make, "bfloat16"),
    }


def training(
    setting: Setting, batches: Batches, forms: Mapping[str, Form], *, head_only: bool = False
) -> dict[str, Maker]:
    """PyTorch's training in each form, by column."""
    torch.compiler.reset()  # its limit of recompilations counts the networks of all rows
    frozen_blocks = setting.model.num_blocks if head_only else 0

    def make(form: Form) -> Program:
        trainer = make_trainer(
            setting.model,
            frozen_blocks=frozen_blocks,
            form=form,
            head_only=head_only,
            device=torch_device(setting.device),
        )
        return partial(train, trainer, batches)

    return {column: partial(make, form) for column, form in forms.items()}


def timed(name: str, what: str, makers: Mapping[str, Maker], setting: Setting, images: int) -> list[Row]:
    """A row of rates of the programs that this machine can run. Each program works on that many images."""
    programs, note = usable(makers)
    return [Row(name, what, "images/s", rates(take_turns(programs, setting.rounds), images), note=note)]


def step_rows(name: str, setting: Setting, _: Skipped) -> list[Row]:
    """Training steps on stored images without augmentation."""
    images = setting.steps * setting.batch_size
    stored = stored_images(load_images(setting, images), setting.batch_size, torch_device(setting.device))
    makers = {
        **jax_forms(lambda precision: jax_program.train_steps(setting, "full", precision=precision)),
        **training(setting, stored, GPU_FORMS),
    }
    what = f"training step, all trained, batch {setting.batch_size:,}, images stored as bytes on the device"
    return timed(name, what, makers, setting, images)


def epochs(setting: Setting, mask: Mask, kind: Augment) -> dict[str, Maker]:
    """This project's epochs, by column."""
    return jax_forms(lambda precision: jax_program.epochs(setting, mask, kind, precision=precision))


def flipcrop_rows(setting: Setting, _: Skipped) -> list[Row]:
    """Epochs with flip and crop, which both programs compute on the device."""
    split = load_images(setting, setting.images)
    stored = stored_images(split, setting.batch_size, torch_device(setting.device), flip_and_crop=True)
    makers = {**epochs(setting, "full", "flipcrop"), **training(setting, stored, GPU_FORMS)}
    what = f"epoch of {setting.images:,} images stored on the device, flip and crop there, all trained"
    return timed("epoch_flipcrop", what, makers, setting, setting.images)


def loader(setting: Setting, images: int) -> tuple[Batches, int]:
    """PyTorch's loader with Pillow's AutoAugment, and how many processes it has: one for each core."""
    workers = 0 if setting.device == "cpu" else os.process_cpu_count() or 1
    batches = make_loader(load_images(setting, images), setting.batch_size, augment=True, workers=workers)
    return Copied(batches, torch_device(setting.device)), workers


def autoaugment_rows(setting: Setting, _: Skipped) -> list[Row]:
    """Epochs with AutoAugment. PyTorch has none on a GPU that treats each image differently, so Pillow computes it."""
    batches, workers = loader(setting, setting.images)
    forms = {column: GPU_FORMS[column] for column in LOADED}
    makers = {**epochs(setting, "full", "autoaugment"), **training(setting, batches, forms)}
    what = (
        f"epoch of {setting.images:,} images, AutoAugment, all trained; jaxcnn stores and augments them on the device, "
        f"PyTorch's loader has Pillow in {workers} processes"
    )
    return timed("epoch_autoaugment", what, makers, setting, setting.images)


def cached_rows(setting: Setting, _: Skipped) -> list[Row]:
    """Epochs of the head on cached features, which in PyTorch are cached by hand."""
    device = torch_device(setting.device)
    network = make_trainer(setting.model, frozen_blocks=setting.model.num_blocks, device=device).network
    features = CachedFeatures(network, load_images(setting, setting.images), setting.batch_size, device)
    stored = Stored(features.features, features.labels, setting.batch_size)
    forms = {column: form._replace(channels_last=False) for column, form in GPU_FORMS.items()}
    makers = {**epochs(setting, "frozen", "none"), **training(setting, stored, forms, head_only=True)}
    what = f"epoch of {setting.images:,} images, all blocks frozen, features cached on the device (PyTorch's by hand)"
    return timed("epoch_frozen_cached", what, makers, setting, setting.images)


def augment_rows(setting: Setting, skipped: Skipped) -> list[Row]:
    """Augmenting and standardising alone."""
    images = setting.steps * setting.batch_size
    device = torch_device(setting.device)
    rows = []

    def all_of(batches: Batches) -> Program:
        def run() -> None:
            for _ in batches:
                pass
            synchronise(device)

        return run

    if not skipped("augment_flipcrop"):
        stored = stored_images(load_images(setting, images), setting.batch_size, device, flip_and_crop=True)
        ours = partial(jax_program.stored_augmentation, setting, "flipcrop")
        what = "flip and crop, and standardising, of images on the device"
        makers = {"jaxcnn": ours, "pytorch": lambda: all_of(stored)}
        rows += timed("augment_flipcrop", what, makers, setting, images)
    if not skipped("augment_autoaugment"):
        batches, workers = loader(setting, images)
        ours = partial(jax_program.stored_augmentation, setting, "autoaugment")
        what = f"AutoAugment and standardising, on the device; PyTorch's side is Pillow in {workers} processes"
        makers = {"jaxcnn": ours, "pytorch": lambda: all_of(batches)}
        rows += timed("augment_autoaugment", what, makers, setting, images)
    return rows


def groups() -> list[Group]:
    """All groups, the most telling ones first: a measurement that is ended early has them."""

    def large(setting: Setting, skipped: Skipped) -> Sequence[Row]:
        return step_rows(f"step_full_{LARGE_BATCH}", replace(setting, batch_size=LARGE_BATCH), skipped)

    return [
        Group(("step_full",), partial(step_rows, "step_full")),
        Group((f"step_full_{LARGE_BATCH}",), large),
        Group(("epoch_flipcrop",), flipcrop_rows),
        Group(("epoch_autoaugment",), autoaugment_rows),
        Group(("augment_flipcrop", "augment_autoaugment"), augment_rows),
        Group(("epoch_frozen_cached",), cached_rows),
        Group(("first_step_cold",), lambda setting, _: [own.first_step(setting, FIRST_STEP, warm=False)]),
        Group(("peak_memory",), lambda setting, _: [own.peak_memory(setting, FIRST_STEP, warm=False)]),
        Group(("first_step_warm",), lambda setting, _: [own.first_step(setting, FIRST_STEP, warm=True)]),
    ]
