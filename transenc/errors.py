"""The errors a caller can catch, each with the exit status the command line gives it.

A message is one line: what went wrong, where, what was expected, what was found and what to do.
"""

from __future__ import annotations


class TransencError(Exception):
    """Base of every error raised on purpose by this package.

    Example:
        >>> TransencError("tables do not match").exit_code
        1
    """

    exit_code = 1


class InputError(TransencError, ValueError):
    """Something the user gave (a file, a name, an argument) cannot be used as it is.

    Example:
        >>> isinstance(InputError("pairs.tsv:3: empty sentence1"), ValueError)
        True
    """

    exit_code = 2


class StateError(TransencError):
    """State on disk is damaged or incompatible, or a computed number is not finite.

    Example:
        >>> StateError("run/config.json: not valid JSON").exit_code
        3
    """

    exit_code = 3


class BusyError(TransencError):
    """Another process holds what was asked for.

    Example:
        >>> BusyError("run/ is in use by process 12 on host a").exit_code
        4
    """

    exit_code = 4


class Interrupted(BaseException):
    """A signal asked the program to stop.

    A BaseException, so that a library's ``except Exception`` does not swallow it.

    Args:
        signum: The number of the signal; the exit status is 128 plus it.

    Example:
        >>> Interrupted(15).exit_code
        143
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by signal {signum}")
        self.signum = signum
        self.exit_code = 128 + signum
