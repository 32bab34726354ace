"""What the network computes in, where that is left to the device."""

import jax

from jaxcnn.config.training import Precision


def resolve_precision(precision: Precision) -> Precision:
    """float32 or bfloat16: `auto` is bfloat16 on an accelerator and float32 on a CPU, where bfloat16 is slower."""
    if precision != "auto":
        return precision
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"
