"""What the network computes in, where that is left to the device."""

from jaxcnn.config.training import Precision
from jaxcnn.kernels.backend import is_cpu


def resolve_precision(precision: Precision) -> Precision:
    """float32 or bfloat16: `auto` is bfloat16 on an accelerator and float32 on a CPU, where bfloat16 is slower."""
    if precision != "auto":
        return precision
    return "float32" if is_cpu() else "bfloat16"
