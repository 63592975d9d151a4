"""A run over many items: each is read, worked on, written and noted; a bad one is noted and the run goes on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ddcm_fast.bulk.manifest import DONE, FAILED, Manifest, digest
from ddcm_fast.bulk.sources import Item
from ddcm_fast.errors import InputError, first_line
from ddcm_fast.files import Kind, Outputs, sweep

_log = logging.getLogger(__name__)

#: What an item's content becomes: the result's bytes, and facts about it for the manifest.
Work = Callable[[bytes], tuple[bytes, dict[str, Any]]]


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
    done = skipped = failed = size = 0
    for item in tqdm(items, desc="images", unit="image", disable=None if progress is None else not progress):
        start = time.perf_counter()
        line: dict[str, Any] = {"name": item.name, "input": None, "settings": settings}
        output = f"{item.name}{ending}"
        try:
            content = item.read()
            line["input"] = digest(content)
            held = manifest.status(item.name, line["input"], settings)
            if held is not None and held["status"] == DONE:
                skipped += 1
                continue
            if held is not None and not retry_failed:
                failed += 1
                continue
            data, facts = work(content)
        except Exception as error:
            _log.info("%s: %s", item.origin, first_line(error))
            manifest.add(line | {"status": FAILED, "error": first_line(error)})
            failed += 1
            continue
        line |= {"status": DONE, "output": output, "bytes": len(data), "sha256": digest(data)}
        manifest.add(line | {"seconds": round(time.perf_counter() - start, 3), **facts})  # first: see manifest
        outputs.write(folder / output, data)
        done, size = done + 1, size + len(data)
    return Count(done, skipped, failed, size)
