"""The forms in which PyTorch is measured, such as compiled or bfloat16, and which of them this machine can use."""

import time
from collections.abc import Callable, Mapping

import torch

from experiments.bench.pytorch_program import EAGER, Batches, Form

Work = Callable[[Batches], object]
"""Trains or evaluates on batches."""

FORMS = {
    "pytorch": EAGER,
    "pytorch_channels_last": Form(channels_last=True),
    "pytorch_compiled": Form(compiled=True),
    "pytorch_bf16": Form(channels_last=True, bfloat16=True),
}
"""The forms by their column in a row."""

HEAD_FORMS = {
    "pytorch": EAGER,
    "pytorch_fused_adam": Form(fused=True),
    "pytorch_compiled": Form(compiled=True),
    "pytorch_bf16": Form(bfloat16=True),
}
"""The forms for training only the head: it has no channels, and Adam is a large part of its step."""

GPU_FORMS = {
    "pytorch": EAGER,
    "pytorch_tf32": Form(fused=True, tf32=True),
    "pytorch_bf16": Form(fused=True, channels_last=True, bfloat16=True),
    "pytorch_bf16_compiled": Form(fused=True, channels_last=True, bfloat16=True, compiled=True),
    "pytorch_bf16_graphs": Form(fused=True, channels_last=True, bfloat16=True, compiled=True, graphs=True),
}
"""The forms on a GPU: each has one more of PyTorch's means. Eager float32 has neither TF32 nor the fused Adam."""

PROBE = 32
"""Number of images on which a form is tried first."""
SLOWER = 1.5
"""If a form is this many times slower than eager float32 on the probe, it is not timed. On a processor without bfloat16
instructions, bfloat16 takes 20 times as long."""


def torch_forms(
    make: Callable[[Form], Work], batches: Batches, forms: Mapping[str, Form] = FORMS
) -> tuple[dict[str, Work], str]:
    """Prepares the work in each form that this machine can use.

    bfloat16 is tried on a few images, torch.compile on the whole first batch, because it compiles for one batch size.

    Returns:
        The work by column, and a remark about the forms that are left out.
    """
    images, labels = first = next(iter(batches))
    probe = [(images[:PROBE], labels[:PROBE])]
    found: dict[str, Work] = {}
    remarks = []
    for column, form in forms.items():
        if form.compiled:
            torch.compiler.reset()  # its limit of recompilations counts the networks of all rows
        work = make(form)
        if form.bfloat16 and (slow := _too_slow(work, found["pytorch"], probe)):
            remarks.append(f"pytorch bf16 {slow}")
        elif form.compiled and (failed := _failure(work, [first])):
            remarks.append(f"torch.compile failed: {failed}")
        else:
            found[column] = work
    return found, "; ".join(remarks)


def _too_slow(work: Work, eager: Work, probe: Batches) -> str:
    """A remark if the work is much slower than in eager float32 on the probe; else empty."""
    usual, seconds = _seconds(eager, probe), _seconds(work, probe)
    if seconds <= SLOWER * usual:
        return ""
    count = sum(len(labels) for _, labels in probe)
    return f"not timed: {count / seconds:,.0f} images/s in one batch of {count}, float32 {count / usual:,.0f}"


def _seconds(work: Work, batches: Batches) -> float:
    """Seconds of one run, after another one for warm-up."""
    work(batches)
    began = time.perf_counter()
    work(batches)
    return time.perf_counter() - began


def _failure(work: Work, batches: Batches) -> str:
    """The name of the exception that the work raises, for example without a C++ compiler; empty if none."""
    try:
        work(batches)
    except Exception as error:  # dynamo, inductor and the compiler raise many types
        return type(error).__name__
    return ""
