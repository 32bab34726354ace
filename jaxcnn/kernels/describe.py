"""A text that identifies what a function computes: where it is defined, and every value that it closes over."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from contextlib import ContextDecorator
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import jax
import numpy as np

_KNOWN_CODE = frozenset({"jaxcnn", "jax", "flax", "optax", "numpy", "contextlib", "functools"})
"""Top-level packages whose code is identified by their version, or (this package) by a digest of its source."""


class Undescribed(Exception):
    """A value cannot be described completely."""


def describe(value: Any) -> Iterator[str]:
    """Parts of a text that differs whenever two values differ.

    Described are plain data, arrays, dataclasses, and functions with their closures and defaults. Module-level values
    that a function reads are not part of the text: they follow from the code.

    Raises:
        Undescribed: for an object of another kind, or a function of a package that is not in `_KNOWN_CODE`.
    """
    yield f"<{type(value).__module__}.{type(value).__qualname__}"
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        yield repr(value)
    elif isinstance(value, type | BuiltinFunctionType):
        yield _home(value)
    elif isinstance(value, FunctionType):
        yield f"{_home(value)}:{value.__code__.co_firstlineno}"
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        for each in (cells, value.__defaults__, value.__kwdefaults__):
            yield from describe(each)
    elif isinstance(value, MethodType):
        yield from describe([value.__func__, value.__self__])
    elif isinstance(value, functools.partial):
        yield from describe([value.func, value.args, value.keywords])
    elif isinstance(value, np.ndarray | np.generic | jax.Array):
        array = np.asarray(value)
        yield f"{array.dtype} {array.shape} {array.tobytes().hex()}"
    elif isinstance(value, tuple | list):
        for each in value:
            yield from describe(each)
    elif isinstance(value, Mapping):
        for item in value.items():
            yield from describe(item)
    elif dataclasses.is_dataclass(value):  # also Flax modules; their parent has no repr and is no setting
        yield from describe([(each.name, getattr(value, each.name)) for each in dataclasses.fields(value) if each.repr])
    elif (
        isinstance(value, ContextDecorator) and {"func", "args", "kwds"} <= vars(value).keys()
    ):  # made by @contextmanager
        yield from describe([vars(value)[name] for name in ("func", "args", "kwds")])
    else:
        raise Undescribed(repr(value))
    yield ">"


def _home(value: Any) -> str:
    if value.__module__ is None or value.__module__.partition(".")[0] not in _KNOWN_CODE | {"builtins"}:
        raise Undescribed(f"{value!r} of {value.__module__}")
    return f"{value.__module__}.{value.__qualname__}"
