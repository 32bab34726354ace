"""The rows of the benchmark on a GPU. Each function takes the device from the setting, so a CPU can try them."""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

import torch

from experiments.bench import jax_program
from experiments.bench import processes as own
from experiments.bench.forms import GPU_FORMS
from experiments.bench.machine import cores
from experiments.bench.measure import Group, Program, Row, Skipped, not_timed, orders, rates, take_turns, usable
from experiments.bench.pytorch_device import Copied, Stored, stored_images, torch_device
from experiments.bench.pytorch_program import (
    Batches,
    CachedFeatures,
    Form,
    make_loader,
    make_trainer,
    synchronise,
    train,
)
from experiments.bench.setting import Setting, load_images
from jaxcnn.config import Augment, Mask, Precision
from jaxcnn.errors import InputError

LARGE_BATCH = 2_048
LOADED = ("pytorch", "pytorch_bf16")
"""Forms of PyTorch that are timed with Pillow's augmentation, which bounds the epoch in any form."""
STARTED = ("jaxcnn", "jaxcnn_bf16", "pytorch", "pytorch_bf16_compiled")
"""Programs that are timed from the start of a process, and whose memory is measured."""

Maker = Callable[[], Program]
"""A function that makes a program. It may fail, for example for want of memory: then this program is left out."""


def jax_forms(make: Callable[[Precision], Program]) -> dict[str, Maker]:
    """This project's forms by column. float32 is true float32, as in a run."""
    return {
        "jaxcnn": partial(make, "float32"),
        "jaxcnn_tf32": lambda: jax_program.with_tf32(make("float32")),
        "jaxcnn_bf16": partial(make, "bfloat16"),
    }


def training(
    setting: Setting, batches: Callable[[], Batches], forms: Mapping[str, Form], *, head_only: bool = False
) -> dict[str, Maker]:
    """PyTorch's training in each form, by column. All forms share the batches."""
    shared = cache(batches)
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
        return partial(train, trainer, shared())

    return {column: partial(make, form) for column, form in forms.items()}


def timed(name: str, what: str, makers: Mapping[str, Maker], setting: Setting, images: int) -> list[Row]:
    """A row of rates of the programs that this machine can run. Each program works on that many images."""
    gc.collect()  # frees what rows before this one left on the device
    torch.cuda.empty_cache()
    programs, note = usable(makers)
    try:
        seconds = take_turns(programs, setting.rounds)
    except Exception as error:  # for example, all programs together need more memory than each one did
        seconds, note = {}, "; ".join(filter(None, [note, f"all {not_timed(error)}"]))
    return [Row(name, what, "images/s", rates(seconds, images), note=note)]


def stored(setting: Setting, images: int, *, flip_and_crop: bool = False) -> Stored:
    """PyTorch's images on the device."""
    split = load_images(setting, images)
    return stored_images(split, setting.batch_size, torch_device(setting.device), flip_and_crop=flip_and_crop)


def loaded(setting: Setting, images: int) -> Batches:
    """PyTorch's loader with Pillow's AutoAugment."""
    split = load_images(setting, images)
    loader = make_loader(split, setting.batch_size, augment=True, workers=workers(setting))
    return Copied(loader, torch_device(setting.device))


def workers(setting: Setting) -> int:
    """How many processes the loader has: one for each core, or none where a CPU only tries the rows."""
    return 0 if setting.device == "cpu" else cores()


def step_rows(name: str, setting: Setting, _: Skipped) -> list[Row]:
    """Training steps on stored images without augmentation."""
    images = setting.steps * setting.batch_size
    makers = {
        **jax_forms(lambda precision: jax_program.train_steps(setting, "full", precision=precision)),
        **training(setting, partial(stored, setting, images), GPU_FORMS),
    }
    what = f"training step, all trained, batch {setting.batch_size:,}, images stored as bytes on the device"
    return timed(name, what, makers, setting, images)


def epochs(setting: Setting, mask: Mask, kind: Augment) -> dict[str, Maker]:
    """This project's epochs, by column."""
    return jax_forms(lambda precision: jax_program.epochs(setting, mask, kind, precision=precision))


def flipcrop_rows(setting: Setting, _: Skipped) -> list[Row]:
    """Epochs with flip and crop, which both programs compute on the device."""
    batches = partial(stored, setting, setting.images, flip_and_crop=True)
    makers = {**epochs(setting, "full", "flipcrop"), **training(setting, batches, GPU_FORMS)}
    what = f"epoch of {setting.images:,} images stored on the device, flip and crop there, all trained"
    return timed("epoch_flipcrop", what, makers, setting, setting.images)


def autoaugment_rows(setting: Setting, _: Skipped) -> list[Row]:
    """Epochs with AutoAugment. PyTorch has none on a GPU that treats each image differently, so Pillow computes it."""
    batches = partial(loaded, setting, setting.images)
    forms = {column: GPU_FORMS[column] for column in LOADED}
    makers = {**epochs(setting, "full", "autoaugment"), **training(setting, batches, forms)}
    what = (
        f"epoch of {setting.images:,} images, AutoAugment, all trained; jaxcnn stores and augments them on the device, "
        f"PyTorch's loader runs Pillow in {workers(setting)} processes"
    )
    return timed("epoch_autoaugment", what, makers, setting, setting.images)


def cached_rows(setting: Setting, _: Skipped) -> list[Row]:
    """Epochs of the head on cached features, which in PyTorch are cached by hand."""
    device = torch_device(setting.device)

    def cached() -> Batches:
        network = make_trainer(setting.model, frozen_blocks=setting.model.num_blocks, device=device).network
        found = CachedFeatures(network, load_images(setting, setting.images), setting.batch_size, device)
        return Stored(found.features, found.labels, setting.batch_size)

    forms = {column: form._replace(channels_last=False) for column, form in GPU_FORMS.items()}
    makers = {**epochs(setting, "frozen", "none"), **training(setting, cached, forms, head_only=True)}
    what = f"epoch of {setting.images:,} images, all blocks frozen, features cached on the device (PyTorch's by hand)"
    return timed("epoch_frozen_cached", what, makers, setting, setting.images)


def augment_rows(setting: Setting, skipped: Skipped) -> list[Row]:
    """Augmenting and standardising alone."""
    images = setting.steps * setting.batch_size

    def iterating(batches: Batches) -> Program:
        def run() -> None:
            for _ in batches:
                pass
            synchronise(torch_device(setting.device))

        return run

    def row(kind: Augment, what: str, batches: Callable[[], Batches]) -> list[Row]:
        ours = partial(jax_program.stored_augmentation, setting, kind)
        makers: dict[str, Maker] = {"jaxcnn": ours, "pytorch": lambda: iterating(batches())}
        name = f"augment_{kind}"
        return [] if skipped(name) else timed(name, what, makers, setting, images)

    flipped = partial(stored, setting, images, flip_and_crop=True)
    pillow = f"AutoAugment and standardising, jaxcnn on the device, PyTorch by Pillow in {workers(setting)} processes"
    return [
        *row("flipcrop", "flip and crop, and standardising, on the device", flipped),
        *row("autoaugment", pillow, partial(loaded, setting, images)),
    ]


def start_rows(setting: Setting, _: Skipped) -> list[Row]:
    """Time to the first updated weights in a new process, with empty and then with filled caches, and its memory."""
    cold, warm, peaks = (dict[str, list[float]]((program, []) for program in STARTED) for _ in range(3))
    failures: dict[str, str] = {}
    for order in orders(STARTED, setting.processes):
        for program in order:
            if program in failures:
                continue
            try:
                with own.temporary() as folder:
                    first, second = (own.run_child("first_step", setting, folder, program) for _ in range(2))
            except InputError as error:
                failures[program] = f"{program.replace('_', ' ')} not timed: {error}"
                continue
            cold[program].append(first["seconds"])
            warm[program].append(second["seconds"])
            if second["peak_device_mib"] is not None:
                peaks[program].append(second["peak_device_mib"])
    row = partial(Row, more_is_better=False, note="; ".join(failures.values()))
    start = "start of the process to the first updated weights, AutoAugment, compilation caches"
    memory = f"peak memory on the device, one step of {setting.batch_size:,} images; further stored images add to it"
    return [
        row("first_step_cold", f"{start} empty", "s", cold),
        row("first_step_warm", f"{start} filled", "s", warm),
        row("peak_memory", memory, "MiB", peaks),
    ]


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
        Group(("first_step_cold", "first_step_warm", "peak_memory"), start_rows),
    ]
