"""The precision that the network computes in, if the user leaves it to the device."""

from jaxcnn.config.training import Precision
from jaxcnn.kernels.backend import is_cpu


def resolve_precision(precision: Precision) -> Precision:
    """Replaces `auto`: bfloat16 on an accelerator, and float32 on a CPU, where bfloat16 is slower."""
    if precision != "auto":
        return precision
    return "float32" if is_cpu() else "bfloat16"
