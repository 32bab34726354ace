"""The one exception for everything a user can get wrong."""


class InputError(ValueError):
    """A flag, configuration, file, archive or checkpoint that cannot be used.

    The message names the thing, the value, and the remedy. Command-line programs print it and exit with
    status 2; from Python it is an ordinary `ValueError`.
    """
