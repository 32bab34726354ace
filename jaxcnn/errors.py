"""What a user can get wrong, and what the machine could not do at the time."""

from collections.abc import Iterator


class InputError(ValueError):
    """A flag, configuration, file, archive or checkpoint that cannot be used.

    The message names the thing, the value, and the remedy. Command-line programs print it and exit with
    status 2; from Python it is an ordinary `ValueError`.
    """


class UnreadableError(InputError):
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
