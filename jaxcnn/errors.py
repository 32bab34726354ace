"""The one exception for everything a user can get wrong."""


class InputError(ValueError):
    """A flag, configuration, file, archive or checkpoint that cannot be used.

    The message names the thing, the value, and the remedy. Command-line programs print it and exit with
    status 2; from Python it is an ordinary `ValueError`.
    """


def reason(error: BaseException) -> str:
    """The first line of what a library's exception says, to quote in a message of our own."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
