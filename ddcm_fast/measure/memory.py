"""How much memory a case takes, measured: its inputs, what it keeps, and the temporaries of a call.

On a GPU torch counts. On a CPU a process of its own runs the case, and the growth of its resident peak is taken
(Linux; elsewhere nothing is said). That process is kept for the cases that follow, and gives freed memory back at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import multiprocessing
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

import torch

from ddcm_fast.measure.cases import Case
from ddcm_fast.measure.work import prepare

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")

#: glibc's mallopt(M_MMAP_THRESHOLD, ...): larger blocks go back to the system when they are freed.
_MMAP_THRESHOLD, _BLOCK = -3, 1 << 16


def free(device: torch.device) -> int | None:
    """Bytes that are free on a device, None where that is not known."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what torch keeps of freed memory counts as taken
        return torch.cuda.mem_get_info(device)[0]
    known = []
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        known.append(int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) << 10)
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        group = Path("/sys/fs/cgroup")
        known.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return min(known, default=None)


class Meter:
    """Measures the peaks of cases; used in a `with` statement, which ends the process that it may have started."""

    def __init__(self) -> None:
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def peak(self, case: Case) -> int | None:
        """Bytes, None where they cannot be measured."""
        if case.device.type == "cuda":
            return _cuda_peak(case)
        if not _CLEAR.exists():
            return None
        if self._pipe is None:
            self._start()
        assert self._pipe is not None
        try:
            self._pipe.send((case, torch.get_num_threads()))
            return self._pipe.recv()
        except (EOFError, OSError):  # it was ended, by the system for want of memory
            self._end()
            return None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit threads' locks
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def _end(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.terminate()
            self._process.join()
        self._pipe = self._process = None


def _cuda_peak(case: Case) -> int:
    before = torch.cuda.memory_allocated(case.device)
    work = prepare(case)
    torch.cuda.synchronize(case.device)
    torch.cuda.reset_peak_memory_stats(case.device)
    work()
    torch.cuda.synchronize(case.device)
    return torch.cuda.max_memory_allocated(case.device) - before


def _serve(pipe: Connection) -> None:
    """Answer cases with their peaks until the pipe is closed; Ctrl-C is for the process that asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):  # another system's C library
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _BLOCK)
    with contextlib.suppress(EOFError, OSError):
        while True:
            case, threads = pipe.recv()
            torch.set_num_threads(threads)
            pipe.send(_resident_peak(case))


def _resident_peak(case: Case) -> int | None:
    with contextlib.suppress(MemoryError, RuntimeError, OSError):
        small = dataclasses.replace(case, size=min(case.size, max(64, case.atoms)), batch=1)
        prepare(small)()  # code, tables and threads that stay
        before = _status("VmRSS")
        work = prepare(case)
        _CLEAR.write_text("5")  # the peak starts again from here
        work()
        return max(0, _status("VmHWM") - before)
    return None


def _status(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    return int(next(line for line in _STATUS.read_text().splitlines() if line.startswith(name)).split()[1]) << 10
