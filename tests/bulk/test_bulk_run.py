"""A run over many: what is done once, what is done again, and what a bad item or a killed run leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddcm_fast.bulk.manifest import Manifest, digest
from ddcm_fast.bulk.run import WAITING_PIXELS, Count, Opened, Work, plan, run, to_do
from ddcm_fast.bulk.sources import Item
from ddcm_fast.errors import InputError
from ddcm_fast.files import TEXT, sweep


class Calls:
    """Work that turns items into capitals, up to `most` of one length at a time, but for those that begin with "bad".

    Those that begin with "none" cannot even be opened.
    """

    def __init__(self, most: int = 1, pixels: int = 1) -> None:
        self.most, self.pixels = most, pixels
        self.seen: list[str] = []
        self.batches: list[list[str]] = []
        self.work = Work(self.open, self.do)

    def open(self, content: bytes) -> Opened:
        if content.startswith(b"none"):
            raise ValueError("it is none")
        return Opened(content, len(content), self.most, self.pixels)

    def do(self, contents: list[bytes]) -> list[tuple[bytes, dict[str, Any]]]:
        self.seen += [content.decode() for content in contents]
        self.batches.append([content.decode() for content in contents])
        if any(content.startswith(b"bad") for content in contents):
            raise ValueError("it is bad\nand this is a second line")
        return [(content.upper(), {"length": len(content)}) for content in contents]


def items(*texts: str) -> list[Item]:
    def reader(text: str) -> Callable[[], bytes]:
        return text.encode

    return [Item(f"in/{i}", f"item {i}", reader(text)) for i, text in enumerate(texts)]


def go(
    folder: Path,
    given: list[Item],
    settings: str = "s",
    rank: int = 0,
    workers: int = 1,
    force: bool = False,
    retry_failed: bool = False,
    calls: Calls | None = None,
) -> tuple[list[str], Count]:
    calls = calls or Calls()
    manifest = Manifest(folder, rank, workers)
    outputs = plan(given, given, folder, ".txt", TEXT, manifest, force)
    count = run(given, calls.work, outputs, folder, ".txt", settings, manifest, retry_failed, progress=False)
    return calls.seen, count


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "ddcm-manifest.jsonl").read_text().splitlines()]


def test_a_bad_item_is_a_line_and_the_run_goes_on(tmp_path: Path) -> None:
    seen, count = go(tmp_path, items("one", "bad two", "three"))
    assert seen == ["one", "bad two", "three"] and count == Count(2, 0, 1, 8)
    assert (tmp_path / "in/0.txt").read_text() == "ONE" and not (tmp_path / "in/1.txt").exists()
    first, bad, _ = lines(tmp_path)
    assert first["status"] == "done" and first["sha256"] == digest(b"ONE") and first["length"] == 3
    assert bad["status"] == "failed" and bad["error"] == "it is bad"


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    given = items("one", "bad two", "three")
    go(tmp_path, given)
    seen, count = go(tmp_path, given)
    assert seen == [] and count == Count(0, 2, 1, 0)
    seen, count = go(tmp_path, given, retry_failed=True)
    assert seen == ["bad two"] and count == Count(0, 2, 1, 0)
    seen, count = go(tmp_path, items("one", "now good", "three"))
    assert seen == ["now good"] and count == Count(1, 2, 0, 8)


def test_alike_items_are_worked_on_together(tmp_path: Path) -> None:
    calls = Calls(most=2)
    _, count = go(tmp_path, items("one", "three", "two", "six", "seven"), calls=calls)
    assert count == Count(5, 0, 0, 19)
    assert calls.batches == [["one", "two"], ["three", "seven"], ["six"]]
    assert (tmp_path / "in/4.txt").read_text() == "SEVEN"
    assert {line["name"]: line["batch"] for line in lines(tmp_path)} == {
        "in/0": 2,
        "in/2": 2,
        "in/1": 2,
        "in/4": 2,
        "in/3": 1,
    }


def test_only_the_bad_ones_of_a_batch_are_given_up(tmp_path: Path) -> None:
    given = items("one", "none", "bad", "two")
    calls = Calls(most=3)
    _, count = go(tmp_path, given, calls=calls)
    assert count == Count(2, 0, 2, 6)
    assert calls.batches == [["one", "bad", "two"], ["one"], ["bad"], ["two"]]
    assert {line["name"]: line["status"] for line in lines(tmp_path)} == {
        "in/0": "done",
        "in/1": "failed",
        "in/2": "failed",
        "in/3": "done",
    }
    again = Calls(most=3)
    assert go(tmp_path, given, calls=again)[1] == Count(0, 2, 2, 0) and again.batches == []
    assert go(tmp_path, items("one", "now", "six", "two"), calls=again)[1].done == 2
    assert again.batches == [["now", "six"]]


def test_few_wait_where_they_are_large(tmp_path: Path) -> None:
    calls = Calls(most=100, pixels=WAITING_PIXELS // 2)
    go(tmp_path, items("one", "three", "two", "seven", "six"), calls=calls)
    assert calls.batches == [["one", "two"], ["three", "seven"], ["six"]]


def test_the_manifest_is_not_trusted(tmp_path: Path) -> None:
    given = items("one", "two", "three", "four")
    go(tmp_path, given)
    (tmp_path / "in/0.txt").unlink()
    (tmp_path / "in/1.txt").write_text("TWo")
    (tmp_path / "in/3.txt").write_text("")
    assert [item.name for item in to_do(given, Manifest(tmp_path), "s")] == ["in/0", "in/1", "in/3"]
    seen, _ = go(tmp_path, given)
    assert seen == ["one", "two", "four"] and (tmp_path / "in/1.txt").read_text() == "TWO"
    seen, _ = go(tmp_path, given, settings="others")
    assert len(seen) == 4


def test_a_torn_line_is_done_again(tmp_path: Path) -> None:
    given = items("one", "two")
    go(tmp_path, given)
    path = tmp_path / "ddcm-manifest.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    (tmp_path / "in/1.txt").unlink()  # which comes after its line
    seen, _ = go(tmp_path, given)
    assert seen == ["two"]
    whole = path.read_bytes()
    path.write_bytes(b'\xff\xfe\n[1]\n{"name": 3}\nnull\n' + whole)
    seen, _ = go(tmp_path, given)
    assert seen == []


def test_workers_see_each_others_work(tmp_path: Path) -> None:
    given = items("one", "two", "three")
    go(tmp_path, given[::2], rank=0, workers=2)
    go(tmp_path, given[1::2], rank=1, workers=2)
    names = {path.name for path in tmp_path.glob("*.jsonl")}
    assert names == {"ddcm-manifest-0-of-2.jsonl", "ddcm-manifest-1-of-2.jsonl"}
    seen, count = go(tmp_path, given)
    assert seen == [] and count.skipped == 3


def test_what_somebody_else_put_there_stays(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/1.txt").write_text("of the kind, and not of this job")
    with pytest.raises(InputError, match=r"1\.txt was there before"):
        go(tmp_path, items("one", "two", "three"))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["1.txt"]
    seen, _ = go(tmp_path, items("one", "two", "three"), force=True)
    assert len(seen) == 3 and (tmp_path / "in/1.txt").read_text() == "TWO"


def test_an_input_is_never_overwritten(tmp_path: Path) -> None:
    source = tmp_path / "in/0.txt"
    source.parent.mkdir()
    source.write_text("one")
    (tmp_path / "out").symlink_to("in")
    item = Item("0", "item", source.read_bytes, source)
    for folder in (tmp_path / "in", tmp_path / "out"):
        with pytest.raises(InputError, match="same file as the input"):
            go(folder, [item], force=True)
    (tmp_path / "new").mkdir()
    (tmp_path / "new/other.txt").symlink_to(source)
    own = Item("other", "item", b"other".upper, tmp_path / "none")
    manifest = Manifest(tmp_path / "new")
    with pytest.raises(InputError, match="same file as the input"):  # another worker's
        plan([own], [own, item], tmp_path / "new", ".txt", TEXT, manifest, force=True)
    assert source.read_text() == "one"


def test_a_run_killed_before_its_result_has_its_name_does_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path, items("one"))
    assert [line["status"] for line in lines(tmp_path)] == ["done"]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["ddcm-manifest.jsonl"]
    assert go(tmp_path, items("one"))[1] == Count(1, 0, 0, 3)


def test_an_output_of_another_kind_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/1.txt").write_bytes(b"\xff\xfe years of work")
    with pytest.raises(InputError, match="not text"):
        go(tmp_path, items("one", "two", "three"))
    assert (tmp_path / "in/1.txt").read_bytes() == b"\xff\xfe years of work"
    seen, _ = go(tmp_path, items("one", "two", "three"), force=True)
    assert seen == ["one", "two", "three"]


def test_only_dead_processes_unfinished_files_are_swept(tmp_path: Path) -> None:
    from ddcm_fast import files

    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    dead = tmp_path / "deep" / f".ddcm-{files._machine()}-{int(child.stdout)}-0123abcd"
    dead.parent.mkdir()
    kept = [tmp_path / name for name in (f".ddcm-{files._machine()}-{os.getpid()}-0", ".ddcm-00-1-0", ".ddcm-x")]
    for path in (dead, *kept):
        path.write_text("half")
    sweep(tmp_path)
    assert not dead.exists() and all(path.exists() for path in kept)
