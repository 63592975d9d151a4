"""The `ddcm` command."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns its exit status (see terminal); an error is one line on standard error."""
    # All else is imported under the guard, since what a command needs takes seconds: Ctrl-C is one line then, too.
    from ddcm_fast.cli.terminal import guarded

    def run() -> None:
        from ddcm_fast.cli.command import run

        run(argv)

    return guarded(run)
