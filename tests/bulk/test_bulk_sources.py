"""Where the items of a run over many come from: order, names, archives, workers."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from ddcm_fast.bulk.sources import Item, distinct, find, is_many, shard, worker_of
from ddcm_fast.errors import DDCMError, InputError

PNG = (".png", ".PNG")


def names(items: list[Item]) -> list[str]:
    return [item.name for item in items]


def found(*inputs: Path, most: int = 100) -> list[Item]:
    return find(list(inputs), lambda ending: ending in PNG, "images", most)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures in folders, by their bytes: each holds its own name."""
    for name in ("b.png", "a.PNG", "deep/er/c.png", "deep/d.png", "deep/notes.txt", ".hidden.png", ".cache/e.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "in"


def test_a_folder_keeps_its_structure(folder: Path) -> None:
    items = found(folder)
    assert names(items) == ["a", "b", "deep/d", "deep/er/c"]
    assert [item.read().decode() for item in items] == ["a.PNG", "b.png", "deep/d.png", "deep/er/c.png"]


def test_files_and_patterns(folder: Path) -> None:
    assert names(found(folder / "deep" / "d.png", folder / "*.png")) == ["d", "b"]
    assert names(found(folder / "**" / "*.png")) == ["b", "deep/d", "deep/er/c"]
    assert names(found(folder / "d*" / "*.png")) == ["deep/d"]
    (folder / "odd[1].png").write_text("there")
    assert names(found(folder / "odd[1].png")) == ["odd[1]"]  # a file of that name is no pattern
    assert is_many(folder) and is_many(folder / "*.png") and is_many(Path("x.tar"))
    assert not is_many(folder / "b.png") and not is_many(folder / "odd[1].png") and not is_many(Path("none.png"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_is_not_passed_over(folder: Path) -> None:
    (folder / "deep").chmod(0)
    try:
        with pytest.raises(InputError, match="Permission denied"):
            found(folder)
    finally:
        (folder / "deep").chmod(0o755)


def test_a_tar_archive_is_read_by_place(tmp_path: Path) -> None:
    path = tmp_path / "shard-0.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("2.png", "./1.png", "1.txt", "x/../../3.png", ".cache/5.png", "in/4.png", "long" * 60 + ".png"):
            info = tarfile.TarInfo(name)
            info.size = len(name)
            archive.addfile(info, io.BytesIO(name.encode()))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    items = found(path, most=300)
    assert names(items) == ["shard-0/1", "shard-0/2", "shard-0/in/4", "shard-0/" + "long" * 60]
    assert [item.read().decode() for item in items][:3] == ["./1.png", "2.png", "in/4.png"]
    with pytest.raises(InputError, match="longer than any"):
        found(path)[3].read()
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(InputError):
        [item.read() for item in found(path)]
    path.write_text("no archive")
    with pytest.raises(InputError, match="tar archive"):
        found(path)


def test_two_items_of_one_name_are_refused(folder: Path) -> None:
    (folder / "b.PNG").write_text("another")
    with pytest.raises(InputError, match="both become"):
        found(folder)
    first, second = (Item(name, name, bytes) for name in ("Ab", "aB"))
    with pytest.raises(InputError, match="both become"):
        distinct([first, second])  # one file on many file systems


def test_nothing_there(folder: Path) -> None:
    for path in (folder / "none.png", folder / "none*"):
        with pytest.raises(InputError):
            found(path)
    with pytest.raises(InputError, match="holds no images"):
        find([folder], lambda _: False, "images", 1)


def test_shards_are_all_and_apart() -> None:
    items = [Item(str(i), str(i), bytes) for i in range(10)]
    parts = [names(shard(items, rank, 3)) for rank in range(3)]
    assert sorted(name for part in parts for name in part) == names(items) and {len(p) for p in parts} == {3, 4}
    assert worker_of({}) == (0, 1) and worker_of({"RANK": "1"}) == (0, 1)
    assert worker_of({"RANK": "2", "WORLD_SIZE": "4", "SLURM_PROCID": "0"}) == (2, 4)
    assert worker_of({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}) == (1, 2)
    for rank, size in (("4", "4"), ("-1", "4"), ("x", "4"), ("0", "")):
        with pytest.raises(DDCMError, match="RANK is"):
            worker_of({"RANK": rank, "WORLD_SIZE": size})


def test_data_sets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    from ddcm_fast.bulk.sources import dataset

    folder = tmp_path / "pictures" / "train"
    folder.mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{i}.png")
    items = dataset(str(tmp_path / "pictures"), "train")
    assert names(items) == ["000000", "000001", "000002"]
    assert items[1].read() == (folder / "1.png").read_bytes()
    rows = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "pictures"))
    rows.save_to_disk(str(tmp_path / "saved"))
    assert len(dataset(str(tmp_path / "saved"), None)) == 3
    with pytest.raises(InputError, match="cannot load the data set"):
        dataset(str(tmp_path / "saved"), "test")
