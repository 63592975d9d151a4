"""Fuzz the readers: python tests/fuzz/run.py [--seconds N] [--count N] [--seed N] [--target NAME], else without end.

Case number i of a seed is always the same. A case fails that raises anything but a DDCMError, takes longer than 5 s of
processor time or drives the process above 1 GB more than it had; it is stored in tests/fuzz/failures, to be moved to
tests/fuzz/corpus when it is mended. Exit status 1 after failures.
"""

from __future__ import annotations

import argparse
import itertools
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from types import FrameType

import torch

sys.path.insert(0, str(Path(__file__).parent))
from targets import TARGETS, Target, describe

SECONDS = 5
MEMORY = 1 << 30
TIMERS = ((signal.ITIMER_PROF, signal.SIGPROF, SECONDS), (signal.ITIMER_REAL, signal.SIGALRM, 30 * SECONDS))
FAILURES = Path(__file__).parent / "failures"


class TooSlow(BaseException):
    """A case ran out of time; no `except Exception` on the way swallows it."""


def _alarm(number: int, frame: FrameType | None) -> None:
    raise TooSlow(f"no answer within {SECONDS} s")


def attempt(target: Target, case: bytes) -> tuple[bool, BaseException | None]:
    """Run a case: whether it was accepted, and what was wrong with that."""
    # Of processor time, so that a busy machine fails nothing; and some of any time, for what waits.
    for timer, number, seconds in TIMERS:
        signal.signal(number, _alarm)
        signal.setitimer(timer, seconds)
    try:
        return target.run(case), None
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return False, error
    finally:
        for timer, _, _ in TIMERS:
            signal.setitimer(timer, 0)


def limit_memory() -> None:
    """Let the process grow by MEMORY from here on (Linux), after which allocations fail."""
    status = Path("/proc/self/statm")
    if status.exists():
        now = int(status.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--count", type=int)
    parser.add_argument("--seed", type=int, default=None, help="by default another one each time")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--target", choices=TARGETS, nargs="+", default=list(TARGETS))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    seed = random.SystemRandom().randrange(10**6) if args.seed is None else args.seed
    print(f"seed {seed}", flush=True)
    targets = {name: TARGETS[name][0]() for name in args.target}
    shares = [TARGETS[name][1] for name in targets]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    limit_memory()
    counts = {name: [0, 0] for name in targets}  # run, accepted
    failures, slowest = 0, (0.0, "")
    start = said = time.monotonic()
    try:
        for i in itertools.count(args.first):
            now = time.monotonic()
            if (args.count and i - args.first >= args.count) or (args.seconds and now - start >= args.seconds):
                break
            if now - said > 60:
                said = now
                print(f"{i} cases, {failures} failures", flush=True)
            rng = random.Random(f"{seed}/{i}")
            name = rng.choices(list(targets), shares)[0]
            case = targets[name].make(rng)
            began = time.process_time()
            accepted, error = attempt(targets[name], case)
            slowest = max(slowest, (time.process_time() - began, f"{name} {i}"))
            counts[name][0] += 1
            counts[name][1] += accepted
            if error is not None:
                failures += 1
                FAILURES.mkdir(exist_ok=True)
                path = FAILURES / f"{name}-{seed}-{i}.bin"
                path.write_bytes(case)
                print(f"FAILED case {i}, stored as {path.name}: {describe(case)}", flush=True)
                traceback.print_exception(error, limit=-6)
    except KeyboardInterrupt:
        pass
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    for name, (run, accepted) in counts.items():
        print(f"{name}: {run} cases, {accepted} accepted")
    print(f"seed {seed}: {failures} failures; slowest {slowest[0]:.2f} s ({slowest[1]}); memory grew by {grown:.0f} MB")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
