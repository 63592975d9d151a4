"""A run over many items: each is read, worked on, written and noted; a bad one is noted and the run goes on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ddcm_fast.bulk.manifest import DONE, FAILED, Manifest, digest
from ddcm_fast.bulk.sources import Item
from ddcm_fast.errors import first_line
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


def run(
    items: Sequence[Item],
    work: Work,
    folder: Path,
    ending: str,
    kind: Kind,
    settings: str,
    manifest: Manifest,
    retry_failed: bool = False,
    force: bool = False,
    progress: bool | None = None,
) -> Count:
    """Do what is not done yet.

    Args:
        work: its errors give the item up and are noted, whatever they are; KeyboardInterrupt ends the run.
        folder: of the results, made if need be; an item's is folder/NAME + ending, written whole or not at all.
        kind: of file that a result may replace; force: whatever is there.
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
        outputs = Outputs(force=force, folder=folder)
        outputs.add(folder / output, kind)
        outputs.write(folder / output, data)
        line |= {"status": DONE, "output": output, "bytes": len(data), "sha256": digest(data)}
        manifest.add(line | {"seconds": round(time.perf_counter() - start, 3), **facts})
        done, size = done + 1, size + len(data)
    return Count(done, skipped, failed, size)
