"""Errors of training."""

from ddcm_fast.errors import ConfigError


class TrainError(ConfigError):
    """Training was asked for something that cannot be done."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
