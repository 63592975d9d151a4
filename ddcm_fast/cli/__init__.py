"""The `ddcm` command."""

from ddcm_fast.cli.command import main

__all__ = ["main"]
