"""Convert weights between PyTorch's model.pth, safetensors and Orbax checkpoints, and compare both networks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from jaxcnn.cli.flags import WEIGHT_FILES, parse_flags
from jaxcnn.config.network import NetworkOverrides
from jaxcnn.errors import InputError, local_path
from jaxcnn.files import is_there


@dataclass(frozen=True)
class Flags(NetworkOverrides):
    """Source and destination. A destination without a suffix becomes the folder of an Orbax checkpoint."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A file that torch.save or safetensors wrote, a checkpoint, or a run's folder."""
    destination: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DESTINATION")]
    """A .pth or .safetensors file, or a folder for an Orbax checkpoint."""
    verify: bool = False
    """Run the Flax and the PyTorch network on random images, and print the largest difference of their logits."""
    overwrite: bool = False
    """Replace the destination if it exists."""


def convert(flags: Flags) -> None:
    """Converts the weights, and prints the network and what had to be assumed about it.

    Raises:
        InputError: when the source cannot be read, or the destination exists or has another suffix.
    """
    from jaxcnn.config.card import Card
    from jaxcnn.runs.console import Terminal
    from jaxcnn.weights.card import to_metadata
    from jaxcnn.weights.convert import flags_to_read, to_torch
    from jaxcnn.weights.files import write_state_dict
    from jaxcnn.weights.source import read_source
    from jaxcnn.weights.weights_only import save_weights

    source, destination = local_path("source", flags.source), local_path("destination", flags.destination)
    flags = replace(flags, source=source, destination=destination)
    if flags.destination.suffix not in ("", *WEIGHT_FILES):
        raise InputError(
            f"{flags.destination} is not a weight file that can be written: give a file with one of the suffixes "
            f"{', '.join(WEIGHT_FILES)}, or a folder name without a dot for a checkpoint"
        )
    if is_there(flags.destination) and not flags.overwrite:
        raise InputError(f"{flags.destination} exists; give another destination or --overwrite")
    console = Terminal(soft_wrap=True, highlight=False)
    variables, config, assumed, notes, card = read_source(flags.source, flags)
    console.print(
        f"{flags.source}: blocks of {list(config.channels)} channels, {list(config.layers_per_block)} layers each, "
        f"pooling {list(config.apply_pooling)}, batch norm {list(config.apply_bn)}, {config.activation_function}, "
        f"fc {list(config.hidden_dims[-2:])}, {config.in_channels}x{config.input_size}x{config.input_size} images, "
        f"{config.num_classes} classes",
        markup=False,
    )
    for assumption in assumed:
        console.print(f"assumed, because the files do not say: {assumption}", markup=False)
    for note in notes:
        console.print(note, markup=False)
    if flags.verify:
        from jaxcnn.runs.device import select_device
        from jaxcnn.weights.verify import largest_difference

        select_device("cpu")  # as PyTorch, and without TF32
        difference, scale = largest_difference(variables, config)
        console.print(
            f"largest difference of the logits on 64 random images: {difference:.2g} (logits up to {scale:.2g})"
        )
    if flags.destination.suffix == ".safetensors":
        write_state_dict(flags.destination, variables, config, to_metadata(config, card or Card()))
    elif flags.destination.suffix in WEIGHT_FILES:
        write_state_dict(flags.destination, variables, config)
        if words := flags_to_read(to_torch(variables, config), config):
            console.print(f"the file does not contain all settings of the network; to read it give {' '.join(words)}")
    else:
        save_weights(flags.destination, variables, config, overwrite=flags.overwrite)
    console.print(f"wrote {flags.destination}", markup=False)


def program(argv: Sequence[str]) -> None:
    """Runs the program with these arguments."""
    convert(parse_flags(Flags, __doc__, argv))
