"""What a user can get wrong, and what the machine could not do at the time."""

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
    """What ends a program with one message and status 2. The message names the thing and the remedy.

    Each of its kinds below says what has to change: the input, the machine's state, or the settings of training.
    """


class InputError(JaxcnnError, ValueError):
    """A flag, configuration, file, archive or checkpoint that cannot be used."""


class InUseError(InputError):
    """A run's folder that another process works in."""


class MachineError(JaxcnnError):
    """The input is fine; the machine has no room on the disk, no memory, or no permission for it."""


class DivergedError(JaxcnnError):
    """A loss or a weight is no longer finite."""


class UnreadableError(MachineError):
    """Something that cannot be read now, which says nothing about what it holds: it may be whole."""


def reason(error: BaseException) -> str:
    """The first line of what a library's exception says, to quote in a message of our own."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, of Python, JAX, PyTorch or Orbax, says that memory ran out."""
    told = str(error)
    exhausted = "RESOURCE_EXHAUSTED" in told and "os_error_code" not in told  # TensorStore says so of open files too
    return isinstance(error, MemoryError) or exhausted or "t allocate memory" in told


def unreadable(what: object, error: BaseException) -> UnreadableError | None:
    """The error to raise where reading failed for a reason that proves no damage; None where it may be damage.

    Too many open files, a missing permission, a disk or network that fails: once that is over, the same is read.

    Args:
        what: could not be read.
        error: of whatever library; what caused it counts too.
    """
    for each in _chain(error):
        system = isinstance(each, OSError) and each.errno is not None and not isinstance(each, _OF_PATHS)
        if system or "os_error_code" in str(each) or "Too many open files" in str(each):
            return UnreadableError(f"{what} cannot be read: {reason(each)}. Nothing was changed; try again later")
    return None


_OF_PATHS = (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError)  # which say what is there


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def require(ok: bool, name: str, value: object, wanted: str) -> None:
    """Refuses a value, by its name, unless it is fine; `wanted` says what would be."""
    if not ok:
        raise InputError(f"{name}={value!r} is not usable: {wanted}")


def require_choice(name: str, value: object, literal: Any) -> None:
    """Refuses what is not among a Literal's choices."""
    choices = get_args(literal)
    require(value in choices, name, value, f"choose one of {', '.join(choices)}")


def require_int(name: str, value: object, *, least: int, most: int = 2**31 - 1) -> None:
    """Refuses what is no whole number in [least, most]."""
    ok = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
    below = "" if most == 2**31 - 1 else f" and at most {most}"
    require(ok, name, value, f"give a whole number of at least {least}{below}")


def require_number(name: str, value: object, *, least: float, most: float = float("inf"), open_ends: str = "") -> None:
    """Refuses what is no finite number in [least, most]; `open_ends` "(" or ")" leaves that end out."""
    ok = isinstance(value, (int, float)) and not isinstance(value, bool)
    if ok:
        number: Any = value  # compared as it is: a whole number may be too large for a float
        ok = abs(number) <= sys.float_info.max and least <= number <= most
        ok = ok and not ("(" in open_ends and number == least) and not (")" in open_ends and number == most)
    above = f"{'above' if '(' in open_ends else 'at least'} {least:g}"
    below = "" if most == float("inf") else f" and {'below' if ')' in open_ends else 'at most'} {most:g}"
    require(ok, name, value, f"give a number {above}{below}")


def require_text(name: str, value: object, wanted: str) -> None:
    """Refuses what is no text, or would not print."""
    require(isinstance(value, str) and value.isprintable(), name, value, wanted)


def set_plain(config: "DataclassInstance") -> None:
    """Stores numbers of NumPy, JAX and PyTorch, and arrays of them, as Python's own: JSON can hold those."""
    for each in fields(config):
        object.__setattr__(config, each.name, _plain(getattr(config, each.name)))


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(each) for each in value)
    return value.tolist() if hasattr(value, "tolist") and getattr(value, "ndim", 2) < 2 else value


def local_path(name: str, value: Any) -> Path:
    """A path of this machine, with a leading ~ replaced: the one place where paths that a user gives are read.

    Raises:
        InputError: when it is no path, a URL, or the home of an unknown user; `name` is what it was given for.
    """
    try:
        text = os.fspath(value)
        usable = b"\0" not in os.fsencode(text)
    except (TypeError, UnicodeEncodeError):
        usable = False
    require(usable, name, value, "give a path")
    text = os.fsdecode(text)
    # A Path has lost one of the two slashes. A single letter is no scheme.
    if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/", text):
        remedy = "leave file: out" if scheme[1].lower() == "file" else "mount it or copy it here"
        raise InputError(f"{name}={text!r} is a URL, which is not read or written: {remedy}, and give the path")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(f"{name}={text!r} is not usable: {reason(error)}; give a path without ~") from error


def set_path(config: object, name: str, section: str = "") -> None:
    """Stores a path as `local_path` reads it."""
    object.__setattr__(config, name, local_path(section + name, getattr(config, name)))


def set_sequence(config: object, name: str, section: str = "", *, flags: bool = False) -> None:
    """Stores a sequence of whole numbers, or of 0/1 flags, as a tuple: lists from JSON and booleans are welcome."""
    value = getattr(config, name)
    label = section + name
    require(isinstance(value, (list, tuple)), label, value, "give a sequence")
    if flags:
        require(all(v in (0, 1) for v in value), label, value, "every entry must be 0 or 1")
    else:
        whole = all(isinstance(v, int) and not isinstance(v, bool) for v in value)
        require(whole, label, value, "every entry must be a whole number")
    object.__setattr__(config, name, tuple(int(v) for v in value))
