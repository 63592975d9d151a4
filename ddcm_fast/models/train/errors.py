"""Errors of training."""

from ddcm_fast.errors import ConfigError


class TrainError(ConfigError):
    """Training was asked for something that cannot be done."""
