"""The exceptions of this package, and checks that raise them for unusable values."""

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class JaxcnnError(Exception):
    """Base of all errors that the package raises on purpose.

    A program prints the message, which names the problem and the remedy, and exits with status 2. The subclasses say
    what has to change: the input, the state of the machine, or the training settings.
    """


class InputError(JaxcnnError, ValueError):
    """A flag, configuration, file, archive or checkpoint cannot be used."""


class InUseError(InputError):
    """A run's folder that another process works in."""


class MachineError(JaxcnnError):
    """The input is valid, but the machine lacks disk space, memory or a permission."""


class DivergedError(JaxcnnError):
    """A loss or a weight is no longer finite."""


class UnreadableError(MachineError):
    """Something cannot be read at the moment. Its content may be intact."""


def reason(error: BaseException) -> str:
    """The first line of an exception's message, or its type if it has none; for quoting in our own messages."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception from Python, JAX, PyTorch or Orbax means that memory ran out."""
    text = str(error)
    # TensorStore uses the same code for too many open files, and then adds an os_error_code.
    exhausted = "RESOURCE_EXHAUSTED" in text and "os_error_code" not in text
    return isinstance(error, MemoryError) or exhausted or "t allocate memory" in text


def unreadable(what: object, error: BaseException) -> UnreadableError | None:
    """The error to raise if reading failed because of the machine; None if the data itself may be damaged.

    Causes of the first kind are too many open files, a missing permission, or a failing disk or network. Reading can
    succeed later.

    Args:
        what: what could not be read, for the message.
        error: the exception of any library. The exceptions that caused it are searched too.
    """
    for each in _chain(error):
        system = isinstance(each, OSError) and each.errno is not None and not isinstance(each, _PATH_ERRORS)
        if system or "os_error_code" in str(each) or "Too many open files" in str(each):
            return UnreadableError(f"{what} cannot be read: {reason(each)}. Nothing was changed; try again later")
    return None


# These concern the path itself, not the machine.
_PATH_ERRORS = (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def require(ok: bool, name: str, value: object, wanted: str) -> None:
    """Raises an InputError that names `name` and its value, unless `ok`; `wanted` says which values are usable."""
    if not ok:
        raise InputError(f"{name}={value!r} is not usable: {wanted}")


def require_choice(name: str, value: object, literal: Any) -> None:
    """Raises an InputError unless the value is one of a Literal's choices."""
    choices = get_args(literal)
    require(value in choices, name, value, f"choose one of {', '.join(choices)}")


def require_int(name: str, value: object, *, least: int, most: int = 2**31 - 1) -> None:
    """Raises an InputError unless the value is an int in [least, most]; a bool does not count."""
    ok = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
    below = "" if most == 2**31 - 1 else f" and at most {most}"
    require(ok, name, value, f"give a whole number of at least {least}{below}")


def require_number(name: str, value: object, *, least: float, most: float = float("inf"), open_ends: str = "") -> None:
    """Raises an InputError unless the value is a finite int or float in [least, most].

    `open_ends` excludes an end: "(" the lower one, ")" the upper one, "()" both.
    """
    ok = isinstance(value, (int, float)) and not isinstance(value, bool)
    if ok:
        number: Any = value  # not converted: an int may be too large for a float
        ok = abs(number) <= sys.float_info.max and least <= number <= most
        ok = ok and not ("(" in open_ends and number == least) and not (")" in open_ends and number == most)
    above = f"{'above' if '(' in open_ends else 'at least'} {least:g}"
    below = "" if most == float("inf") else f" and {'below' if ')' in open_ends else 'at most'} {most:g}"
    require(ok, name, value, f"give a number {above}{below}")


def require_text(name: str, value: object, wanted: str) -> None:
    """Raises an InputError unless the value is a str of printable characters."""
    require(isinstance(value, str) and value.isprintable(), name, value, wanted)


def set_plain(config: "DataclassInstance") -> None:
    """Replaces NumPy, JAX and PyTorch scalars and 1-d arrays in a config's fields by Python values, as JSON needs."""
    for each in fields(config):
        object.__setattr__(config, each.name, _plain(getattr(config, each.name)))


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(each) for each in value)
    return value.tolist() if hasattr(value, "tolist") and getattr(value, "ndim", 2) < 2 else value


def local_path(name: str, value: Any) -> Path:
    """Converts a user's value to a Path on this machine, with a leading ~ expanded.

    Every path that a user gives goes through this function.

    Args:
        name: the flag or field that the value was given for; only for the message.
        value: a str or a path-like object.

    Raises:
        InputError: when the value is not a path, is a URL, or starts with the ~ of an unknown user.
    """
    try:
        text = os.fspath(value)
        usable = b"\0" not in os.fsencode(text)
    except (TypeError, UnicodeEncodeError):
        usable = False
    require(usable, name, value, "give a path")
    text = os.fsdecode(text)
    # One slash, because Path turns gs://x into gs:/x. Two letters at least, because C:/ is a drive.
    if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/", text):
        remedy = "leave file: out" if scheme[1].lower() == "file" else "mount it or copy it here"
        raise InputError(f"{name}={text!r} is a URL, which is not read or written: {remedy}, and give the path")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(f"{name}={text!r} is not usable: {reason(error)}; give a path without ~") from error


def set_path(config: object, name: str, section: str = "") -> None:
    """Replaces a field by the Path that `local_path` makes of it."""
    object.__setattr__(config, name, local_path(section + name, getattr(config, name)))


def set_sequence(config: object, name: str, section: str = "", *, flags: bool = False) -> None:
    """Replaces a list or tuple of ints (or with `flags`, of 0/1 or bool) in a field by a tuple of ints."""
    value = getattr(config, name)
    label = section + name
    require(isinstance(value, (list, tuple)), label, value, "give a sequence")
    if flags:
        require(all(v in (0, 1) for v in value), label, value, "every entry must be 0 or 1")
    else:
        whole = all(isinstance(v, int) and not isinstance(v, bool) for v in value)
        require(whole, label, value, "every entry must be a whole number")
    object.__setattr__(config, name, tuple(int(v) for v in value))
