"""Computed, not measured: what several H100s gain, and what an ImageNet-sized set costs.

The tables of docs/scale.md. The flags are the assumptions; everything else is counted from the code, taken from data
sheets, or measured elsewhere in the docs.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from experiments.bench.flops import H100, layers, step_bytes, step_flops
from jaxcnn.cli.flags import parse_flags
from jaxcnn.cli.main import main
from jaxcnn.config import DEEP, SHALLOW, ModelConfig

MODELS = {"SHALLOW": SHALLOW, "DEEP": DEEP}
DEVICES = 8
SPEEDUPS = (1, 4, 6.4)
"""Of eight devices over one: no gain, and an efficiency of 50 and of 80 %."""
MOST = 2**24
"""The largest batch that is looked at."""
IMAGENET = 1_281_167
PCIE = 64e9
"""Bytes per second each way, from the H100's data sheet (PCIe 5, 128 GB/s in both directions together)."""
PNG_RATE = 60_000 / 7.7
"""Measured (docs/data.md): PNG files of 32x32 pixels decoded a second, two cores of an AMD EPYC."""
CPU_RATE = 592
"""Measured (docs/speed.md, `step_full`): images a second of SHALLOW in training, two cores of an AMD EPYC."""


@dataclass(frozen=True)
class Assumptions:
    """What is neither counted nor on a data sheet."""

    utilisation: float = 0.4
    """Share of the peak arithmetic that the products reach."""
    memory_utilisation: float = 0.7
    """Share of the peak bandwidth of the device's memory that the step reaches."""
    kernels: int = 20
    """Kernels that a step launches for each convolution or dense layer."""
    launch: float = 3.0
    """Microseconds from one launch to the next."""
    nvlink_hop: float = 1.5
    """Microseconds until a message has passed one hop of the ring within a machine."""
    network_hop: float = 5.0
    """The same over the network."""


class Link(NamedTuple):
    """What connects the devices."""

    name: str
    bandwidth: float
    """Bytes per second that a device can send."""
    hop: float
    """Seconds for one hop of the ring, for a message of no length."""


def links(given: Assumptions) -> list[Link]:
    """NVLink 4 (900 GB/s in both directions together), and one 400 Gb/s network port for each device."""
    nvlink = Link("NVLink 4, 450 GB/s", 450e9, 1e-6 * given.nvlink_hop)
    return [nvlink, Link("network, 400 Gb/s", 400e9 / 8, 1e-6 * given.network_hop)]


def norm_channels(model: ModelConfig) -> list[int]:
    """The channels of each batch normalisation."""
    blocks = zip(model.channels, model.layers_per_block, model.apply_bn, strict=True)
    return [channels for channels, count, normed in blocks for _ in range(count * normed)]


def parameters(model: ModelConfig) -> int:
    """How many parameters the network has, with scale and shift of each batch normalisation."""
    return sum(layer.weights for layer in layers(model)) + 2 * sum(norm_channels(model))


def sent(payload: float, devices: int) -> float:
    """Bytes that each device sends in a ring all-reduce of `payload` bytes."""
    return 2 * (devices - 1) / devices * payload


def gradient_bytes(model: ModelConfig) -> int:
    """float32 gradients of all parameters."""
    return 4 * parameters(model)


def statistics_bytes(model: ModelConfig) -> int:
    """float32 sums for batch normalisation: two a channel forward, and two in the gradient."""
    return 4 * 4 * sum(norm_channels(model))


def exchange_seconds(model: ModelConfig, devices: int, link: Link) -> float:
    """Seconds of all all-reduces of a step: one of the gradients, and two for each batch normalisation."""
    times = 1 + 2 * len(norm_channels(model))
    payload = gradient_bytes(model) + statistics_bytes(model)
    return sent(payload, devices) / link.bandwidth + times * 2 * (devices - 1) * link.hop


def step_parts(model: ModelConfig, batch: int, arithmetic: str, given: Assumptions) -> tuple[float, float, float]:
    """Seconds of a full step on one H100 for its arithmetic, its memory traffic and its launches, each alone."""
    width = 2 if arithmetic == "bfloat16" else 4
    return (
        batch * step_flops(model) / (given.utilisation * H100.flops[arithmetic]),
        step_bytes(model, batch, width) / (given.memory_utilisation * H100.bandwidth),
        1e-6 * given.launch * given.kernels * len(layers(model)),
    )


def step_seconds(
    model: ModelConfig, batch: int, arithmetic: str, given: Assumptions, devices: int = 1, link: Link | None = None
) -> float:
    """Seconds of a full step: the longest part, and then what devices exchange (nothing is assumed to overlap it)."""
    computing = max(step_parts(model, -(-batch // devices), arithmetic, given))
    return computing if link is None else computing + exchange_seconds(model, devices, link)


def least_batch(model: ModelConfig, arithmetic: str, given: Assumptions, link: Link, speedup: float) -> int | None:
    """The smallest batch of all devices together at which they are that much faster than one; None if there is none."""

    def enough(share: int) -> bool:
        batch = share * DEVICES
        one = step_seconds(model, batch, arithmetic, given)
        return one >= speedup * step_seconds(model, batch, arithmetic, given, DEVICES, link)

    low, high = 0, MOST // DEVICES  # images for each device; the gain grows with them
    if not enough(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high * DEVICES


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))


def bytes_table() -> str:
    """Bytes that each device sends in a step."""
    counts = (2, 4, 8, 16)
    rows = []
    for name, model in MODELS.items():
        for what, payload in (("gradients", gradient_bytes(model)), ("statistics", statistics_bytes(model))):
            unit, size = ("MB", 1e6) if what == "gradients" else ("kB", 1e3)
            cells = [f"{sent(payload, devices) / size:.1f} {unit}" for devices in counts]
            rows.append([name, f"{parameters(model):,}", what, f"{payload / size:.1f} {unit}", *cells])
    return table(["network", "parameters", "what", "payload", *(f"{n} devices" for n in counts)], rows)


def step_table(given: Assumptions) -> str:
    """The parts of a step on one device."""
    rows = []
    for name, model in MODELS.items():
        for batch in (256, 2_048):
            for arithmetic in H100.flops:
                parts = step_parts(model, batch, arithmetic, given)
                milliseconds = [f"{1e3 * seconds:.2f}" for seconds in parts]
                rows.append([name, f"{batch:,}", arithmetic, *milliseconds, f"{batch / max(parts):,.0f}"])
    header = ["network", "batch", "arithmetic", "its time, ms", "memory, ms", "launches, ms", "images/s at the longest"]
    return table(header, rows)


def batch_table(given: Assumptions) -> str:
    """The batches from which eight devices gain."""
    rows = []
    for name, model in MODELS.items():
        for link in links(given):
            exchange = f"{1e3 * exchange_seconds(model, DEVICES, link):.2f} ms"
            for arithmetic in H100.flops:
                found = [least_batch(model, arithmetic, given, link, speedup) for speedup in SPEEDUPS]
                batches = ["none" if batch is None else f"{batch:,}" for batch in found]
                rows.append([name, link.name, exchange, arithmetic, *batches])
    header = ["network", "link", "exchange", "arithmetic", "faster than one", "4 times as fast", "6.4 times as fast"]
    return table(header, rows)


def set_table(given: Assumptions) -> str:
    """What an ImageNet-sized set costs."""
    nvlink, _ = links(given)
    rows = []
    for size in (32, 64):
        pixels = size * size * 3
        model = replace(SHALLOW, input_size=size, num_classes=1_000)
        cpu = CPU_RATE * step_flops(SHALLOW) / step_flops(model)
        batch = 2_048
        one = batch / step_seconds(model, batch, "bfloat16", given)
        eight = DEVICES * batch / step_seconds(model, DEVICES * batch, "bfloat16", given, DEVICES, nvlink)
        stored = IMAGENET * (pixels + 4)  # with an int32 label
        rows.append(
            [
                f"{size}x{size}",
                f"{stored / 1e9:.1f} GB",
                f"{IMAGENET / PNG_RATE * pixels / (32 * 32 * 3) / 60:.0f} min",
                f"{stored / PCIE:.2f} s",
                f"{IMAGENET / cpu / 60:.0f} min",
                f"{IMAGENET / one:.1f} s",
                f"{one * pixels / 1e9:.1f} GB/s",
                f"{IMAGENET / eight:.2f} s",
                f"{eight * pixels / 1e9:.0f} GB/s",
            ]
        )
    header = ["pixels", "on disk, in memory or on a device", "decoding once", "copy to a device"]
    header += ["epoch, two CPU cores", "epoch, one H100", "its images", "epoch, eight H100s", "their images"]
    return table(header, rows)


def tables(given: Assumptions) -> list[str]:
    """All tables of the page, in order."""
    return [bytes_table(), step_table(given), batch_table(given), set_table(given)]


if __name__ == "__main__":
    main(lambda: print("\n\n".join(tables(parse_flags(Assumptions(), __doc__, sys.argv[1:])))), continues=False)
