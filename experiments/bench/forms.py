"""PyTorch's forms: which of them a row is measured in on this machine."""

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
"""By the column of a row."""

HEAD_FORMS = {
    "pytorch": EAGER,
    "pytorch_fused_adam": Form(fused=True),
    "pytorch_compiled": Form(compiled=True),
    "pytorch_bf16": Form(bfloat16=True),
}
"""Those of a head alone: it has no channels, and Adam is a large part of its step."""

PROBE = 32
"""Images on which a form is tried first."""
SLOWER = 1.5
"""A form this many times slower than eager float32 on the probe is not timed: bfloat16 takes 20 times as long on a
processor without instructions for it."""


def torch_forms(
    make: Callable[[Form], Work], batches: Batches, forms: Mapping[str, Form] = FORMS
) -> tuple[dict[str, Work], str]:
    """The work in each form that is of use here, by column, and what is to be said of the others.

    bfloat16 is tried on a few of the first batch's images; torch.compile, which must not see another batch size, on the
    whole first batch.
    """
    images, labels = first = next(iter(batches))
    probe = [(images[:PROBE], labels[:PROBE])]
    found: dict[str, Work] = {}
    remarks = []
    for column, form in forms.items():
        if form.compiled:
            torch.compiler.reset()  # it compiles one function a few times only, and every row's network counts
        work = make(form)
        if form.bfloat16 and (slow := _too_slow(work, found["pytorch"], probe)):
            remarks.append(f"pytorch bf16 {slow}")
        elif form.compiled and (failed := _failure(work, [first])):
            remarks.append(f"torch.compile failed: {failed}")
        else:
            found[column] = work
    return found, "; ".join(remarks)


def _too_slow(work: Work, eager: Work, probe: Batches) -> str:
    """What a short turn showed, if the work takes much longer than in eager float32; else an empty text."""
    usual, seconds = _seconds(eager, probe), _seconds(work, probe)
    if seconds <= SLOWER * usual:
        return ""
    count = sum(len(labels) for _, labels in probe)
    return f"not timed: {count / seconds:,.0f} images/s in one batch of {count}, float32 {count / usual:,.0f}"


def _seconds(work: Work, batches: Batches) -> float:
    """What a turn takes; the first one prepares."""
    work(batches)
    began = time.perf_counter()
    work(batches)
    return time.perf_counter() - began


def _failure(work: Work, batches: Batches) -> str:
    """The kind of error that the work ends in, as without a C++ compiler; empty if there is none."""
    try:
        work(batches)
    except Exception as error:  # dynamo, inductor and the compiler they call each raise their own kinds
        return type(error).__name__
    return ""
