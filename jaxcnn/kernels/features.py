"""Features: the inputs of a stage, which frozen stages compute once."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import jax


@partial(jax.tree_util.register_dataclass, data_fields=("values", "columns"), meta_fields=("stage",))
@final
@dataclass(frozen=True)
class Features:
    """The inputs of a stage, for each image: frozen stages compute them once, and training starts from them.

    For a dense stage, columns that are zero for every image may be left out:

        all inputs of fc1         values        columns
        [[0.5, 0, 0, 2.0],        [[0.5, 2.0],  [0, 3]
         [0.1, 0, 0, 0.0]]         [0.1, 0.0]]
    """

    values: Any
    """Floating (N, H, W, C), or (N, C) where the stage is dense."""
    stage: int
    """Index of the stage that reads them; `num_stages` is the head."""
    columns: Any = None
    """int32 (C,), ascending: which of a dense stage's inputs `values` holds; None if it holds all."""


def map_values(f: Callable[[Any], Any], x: Any) -> Any:
    """f(x) for an array of images; for `Features`, the same features with f applied to their values."""
    return replace(x, values=f(x.values)) if isinstance(x, Features) else f(x)
