"""A run over many items: they are read, worked on, written and noted; a bad one is noted and the run goes on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from ddcm_fast.bulk.manifest import DONE, FAILED, Manifest, digest
from ddcm_fast.bulk.sources import Item
from ddcm_fast.errors import InputError, first_line
from ddcm_fast.files import Kind, Outputs, sweep

_log = logging.getLogger(__name__)

#: Pixels of opened items that wait for others of their kind: of RGB pictures about 100 MB.
WAITING_PIXELS = 1 << 25


class Opened(NamedTuple):
    """An item's content, read.

    Attributes:
        what: it is worked on as: a picture, the parts of a file.
        alike: equal for items that may be worked on together.
        most: so many at a time.
        pixels: of the picture, by which memory is held.
    """

    what: Any
    alike: Hashable
    most: int
    pixels: int


@dataclass(frozen=True)
class Work:
    """What a run does to items.

    Attributes:
        open: an item's content, read; raises for one that is none.
        do: what was opened, of items that are alike, at most `most` of them -> for each, in order, the result's bytes
            and facts about it for the manifest. The bytes are the same in whatever company.
    """

    open: Callable[[bytes], Opened]
    do: Callable[[list[Any]], list[tuple[bytes, dict[str, Any]]]]


@dataclass(frozen=True)
class Count:
    """How many items a run has done, found done, and given up; and bytes of the results it made."""

    done: int = 0
    skipped: int = 0
    failed: int = 0
    bytes: int = 0


def to_do(items: Sequence[Item], manifest: Manifest, settings: str, retry_failed: bool = False) -> list[Item]:
    """The items that no line of the manifest answers, in their order; those that cannot be read are among them."""
    out = []
    for item in items:
        try:
            held = manifest.status(item.name, digest(item.read()), settings)
        except Exception:  # whatever it is, the item's turn will tell
            held = None
        if held is None or (retry_failed and held["status"] == FAILED):
            out.append(item)
    return out


def plan(
    items: Sequence[Item],
    inputs: Iterable[Item],
    folder: Path,
    ending: str,
    kind: Kind,
    manifest: Manifest,
    force: bool = False,
) -> Outputs:
    """Check every result's place before the work.

    Args:
        items: whose results are wanted; an item's is folder/NAME + ending. inputs: of all workers, never overwritten.
        folder: of the results, which may be made.
        kind: of file that a result may replace, if the manifest knows it; force: whatever is there.

    Raises InputError: a place that cannot be written, or what is there must stay.
    """
    files = {item.file for item in inputs if item.file is not None and item.file.exists()}
    outputs = Outputs(files, force, folder)
    for item in items:
        output = f"{item.name}{ending}"
        path = folder / output
        outputs.add(path, kind)
        if not force and path.exists() and path.stat().st_size and not manifest.knows(output):
            raise InputError(f"{path} was there before; name another folder, or replace it with --force")
    return outputs


def run(
    items: Sequence[Item],
    work: Work,
    outputs: Outputs,
    folder: Path,
    ending: str,
    settings: str,
    manifest: Manifest,
    retry_failed: bool = False,
    progress: bool | None = None,
) -> Count:
    """Do what is not done yet.

    Items that are alike are worked on together; they wait for each other while no more than WAITING_PIXELS are held.
    Where a batch raises, its items are tried one by one, so that only the bad ones are given up.

    Args:
        work: its errors give the item up and are noted, whatever they are; KeyboardInterrupt ends the run.
        outputs: of `plan`; folder, ending: as there. The folder is made if need be, results are there whole or not.
        settings: a digest of all that the results depend on beside the items.
        retry_failed: try again what failed before with the same content and settings.
        progress: a bar over the items: True, False, or None for "if standard error is a terminal".

    Raises InputError: a result or the manifest cannot be written. What is written by then stays and is not done again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    disable = None if progress is None else not progress
    with tqdm(total=len(items), desc="images", unit="image", disable=disable) as bar:
        going = _Run(work, outputs, folder, ending, settings, manifest, retry_failed, bar)
        waiting = _Waiting()
        for item in items:
            opened = going.open(item)
            for batch in () if opened is None else waiting.add(opened):
                going.do(batch)
        for batch in waiting.rest():
            going.do(batch)
    return Count(going.done, going.skipped, going.failed, going.bytes)


@dataclass(frozen=True)
class _Ready:
    """An opened item, its line so far and the seconds that it took so far."""

    item: Item
    opened: Opened
    line: dict[str, Any]
    seconds: float


class _Waiting:
    """Opened items until there are as many alike as are worked on together, or too many pixels are held."""

    def __init__(self) -> None:
        self._alike: dict[Hashable, list[_Ready]] = {}
        self._pixels = 0

    def add(self, ready: _Ready) -> Iterator[list[_Ready]]:
        """Take one in; the batches that are to be worked on now."""
        self._alike.setdefault(ready.opened.alike, []).append(ready)
        self._pixels += ready.opened.pixels
        if len(self._alike[ready.opened.alike]) >= ready.opened.most:
            yield self._take(ready.opened.alike)
        while self._pixels > WAITING_PIXELS:
            yield self._take(max(self._alike, key=lambda alike: len(self._alike[alike])))

    def rest(self) -> Iterator[list[_Ready]]:
        """All that still wait."""
        while self._alike:
            yield self._take(next(iter(self._alike)))

    def _take(self, alike: Hashable) -> list[_Ready]:
        batch = self._alike.pop(alike)
        self._pixels -= sum(ready.opened.pixels for ready in batch)
        return batch


@dataclass
class _Run:
    """A run while it goes."""

    work: Work
    outputs: Outputs
    folder: Path
    ending: str
    settings: str
    manifest: Manifest
    retry_failed: bool
    bar: Any
    done: int = field(default=0, init=False)
    skipped: int = field(default=0, init=False)
    failed: int = field(default=0, init=False)
    bytes: int = field(default=0, init=False)

    def open(self, item: Item) -> _Ready | None:
        """An item that is to be done; None: it was done or given up before, or is now."""
        start = time.perf_counter()
        line: dict[str, Any] = {"name": item.name, "input": None, "settings": self.settings}
        try:
            content = item.read()
            line["input"] = digest(content)
            held = self.manifest.status(item.name, line["input"], self.settings)
            if held is not None and held["status"] == DONE:
                self.skipped += 1
                self.bar.update()
                return None
            if held is not None and not self.retry_failed:
                self.failed += 1
                self.bar.update()
                return None
            opened = self.work.open(content)
        except Exception as error:
            self._give_up(item, line, error)
            return None
        return _Ready(item, opened, line, time.perf_counter() - start)

    def do(self, batch: list[_Ready]) -> None:
        """Work on a batch, write and note it."""
        start = time.perf_counter()
        try:
            results = self.work.do([ready.opened.what for ready in batch])
        except Exception as error:
            if len(batch) == 1:
                self._give_up(batch[0].item, batch[0].line, error)
                return
            _log.info("%d at once: %s; going on one by one", len(batch), first_line(error))
            for ready in batch:
                self.do([ready])
            return
        share = (time.perf_counter() - start) / len(batch)
        for ready, (data, facts) in zip(batch, results, strict=True):
            output = f"{ready.item.name}{self.ending}"
            made = {"status": DONE, "output": output, "bytes": len(data), "sha256": digest(data)}
            line = ready.line | made | {"seconds": round(ready.seconds + share, 3), "batch": len(batch)}
            self.manifest.add(line | facts)  # first: see manifest
            self.outputs.write(self.folder / output, data)
            self.done += 1
            self.bytes += len(data)
            self.bar.update()

    def _give_up(self, item: Item, line: dict[str, Any], error: Exception) -> None:
        _log.info("%s: %s", item.origin, first_line(error))
        self.manifest.add(line | {"status": FAILED, "error": first_line(error)})
        self.failed += 1
        self.bar.update()
