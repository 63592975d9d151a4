"""The items of a run over many: files, folders, patterns, tar archives (WebDataset shards) and data sets.

An item is found without reading it and read when its turn comes, so a run over a million needs their names only. The
order is always the same, which is what workers share them out by.
"""

from __future__ import annotations

import glob
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

from ddcm_fast.errors import InputError, MissingExtraError, first_line
from ddcm_fast.files import read


@dataclass(frozen=True)
class Item:
    """One picture or file.

    Attributes:
        name: relative, with "/" between its parts and without its ending: what its result is called.
        origin: where it came from, for messages.
        read: its content. Raises InputError.
        file: the file that it is, or is in; None where that is not known.
    """

    name: str
    origin: str
    read: Callable[[], bytes]
    file: Path | None = None


def is_many(path: Path) -> bool:
    """Whether an input stands for several items: a folder, a tar archive or a pattern."""
    return path.is_dir() or path.suffix.lower() == ".tar" or _is_pattern(path)


def find(inputs: Sequence[Path], wanted: Callable[[str], bool], what: str, most: int) -> list[Item]:
    """The items of files, folders (with those in them), patterns such as "photos/*.jpg" and tar archives.

    Of a folder the files whose ending (with its dot, as it is written) is `wanted`, named by their way from the folder;
    of a tar archive alike, below the archive's own name; a file by its name; what a pattern finds by its way from the
    last folder before the first wildcard. What begins with a dot is passed over. `what` says in messages what is
    wanted, `most` is the longest content in bytes.

    Raises InputError: an input that is not there, cannot be read or holds nothing, or two items of one name.
    """
    items: list[Item] = []
    for path in inputs:
        found = list(_of(path, wanted, most))
        if not found:
            raise InputError(f"{path} holds no {what}; name files, folders, patterns or .tar archives that do")
        items += found
    return distinct(items)


def distinct(items: list[Item]) -> list[Item]:
    """The items. Raises InputError if two have one name, also where the file system ignores case."""
    seen: dict[str, Item] = {}
    for item in items:
        other = seen.setdefault(item.name.lower(), item)
        if other is not item:
            raise InputError(
                f"{other.origin} and {item.origin} would both become {item.name}: "
                "give them different names, or take them in two runs"
            )
    return items


def _is_pattern(path: Path) -> bool:
    return not os.path.lexists(path) and glob.has_magic(str(path))


def _of(path: Path, wanted: Callable[[str], bool], most: int) -> Iterator[Item]:
    if _is_pattern(path):
        top = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
        for name in sorted(glob.glob(str(path), recursive=True)):
            found = Path(name)
            if found.suffix.lower() == ".tar":
                yield from _members(found, wanted, most)
            elif not found.is_dir():
                yield _file(found, top, most)
    elif path.is_dir():
        for folder, folders, files in os.walk(path, onerror=_unreadable):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                if wanted(Path(name).suffix) and not name.startswith("."):
                    yield _file(Path(folder) / name, path, most)
    elif path.suffix.lower() == ".tar":
        yield from _members(path, wanted, most)
    elif path.is_file():
        yield _file(path, path.parent, most)
    else:
        raise InputError(f"cannot read {path}: No such file or directory; name files, folders or patterns")


def _unreadable(error: OSError) -> NoReturn:
    raise InputError(f"cannot read {error.filename}: {error.strerror}") from error


def _file(path: Path, top: Path, most: int) -> Item:
    return Item(path.relative_to(top).with_suffix("").as_posix(), str(path), lambda: read(path, most), path)


def _members(path: Path, wanted: Callable[[str], bool], most: int) -> Iterator[Item]:
    """The files of an archive, by their places in it: reading one does not go through the others."""
    try:
        with tarfile.open(path, "r:") as archive:
            members = [(m.name, m.offset_data, m.size) for m in archive if m.isreg() and not m.issparse()]
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"cannot read {path} as a tar archive: {first_line(error)}") from error
    for name, offset, size in sorted(members):
        parts = [part for part in name.split("/") if part not in ("", ".")]
        hidden = any(part.startswith(".") for part in parts)  # or one that leads out of the archive
        if not parts or hidden or not wanted(Path(parts[-1]).suffix):
            continue
        inside = Path(*parts).with_suffix("").as_posix()
        yield Item(f"{path.stem}/{inside}", f"{path}: {name}", _slice(path, offset, size, most), path)


def _slice(path: Path, offset: int, size: int, most: int) -> Callable[[], bytes]:
    def content() -> bytes:
        if size > most:
            raise InputError(f"it has more than {most >> 20} MiB, which is longer than any such file; leave it out")
        try:
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from error
        if len(data) < size:
            raise InputError(f"{path} ends in the middle of it: the archive is truncated")
        return data

    return content


# ---- data sets of Hugging Face -------------------------------------------------------------------


def dataset(name: str, split: str | None) -> list[Item]:
    """The images of a data set: a folder of `save_to_disk`, a folder of images, or the hub's by its id.

    The first column of images is taken as it is stored, not decoded; items are called 000000, 000001, ...

    Raises InputError: no such data set or split, or no images in it. MissingExtraError: `datasets` is not installed.
    """
    try:
        library: Any = import_module("datasets")
    except ImportError as error:
        raise MissingExtraError("data sets need the package datasets: pip install 'ddcm-fast[datasets]'") from error
    library.disable_progress_bars()  # its own, of reading names; the run has one
    rows = _rows(library, name, split)
    column = next((c for c, feature in rows.features.items() if isinstance(feature, library.Image)), None)
    if column is None:
        raise InputError(f"the data set {name} has no column of images")
    rows = rows.select_columns([column]).cast_column(column, library.Image(decode=False))
    width = max(6, len(str(len(rows))))
    return [Item(f"{i:0{width}}", f"{name}[{i}]", _row(rows, column, i)) for i in range(len(rows))]


def _rows(library: Any, name: str, split: str | None) -> Any:
    try:
        if Path(name).is_dir() and any((Path(name) / file).is_file() for file in ("state.json", "dataset_dict.json")):
            rows = library.load_from_disk(name)
            rows = rows if split is None else rows[split]
        else:
            folder = {"path": "imagefolder", "data_dir": name} if Path(name).is_dir() else {"path": name}
            rows = library.load_dataset(split=split, **folder)
    except Exception as error:  # the library's and its readers' errors are of many kinds
        raise InputError(f"cannot load the data set {name}: {first_line(error)}") from error
    if isinstance(rows, dict):
        if len(rows) > 1:
            raise InputError(f"the data set {name} has the splits {', '.join(rows)}: choose one with --split")
        rows = next(iter(rows.values()))
    return rows


def _row(rows: Any, column: str, i: int) -> Callable[[], bytes]:
    def content() -> bytes:
        found = rows[i][column]
        data: bytes = found["bytes"] if found["bytes"] is not None else read(Path(found["path"]), 1 << 28)
        return data

    return content


# ---- sharing out ---------------------------------------------------------------------------------


def shard(items: Iterable[Item], rank: int, workers: int) -> list[Item]:
    """Every `workers`-th item from the `rank`-th on."""
    return list(items)[rank::workers]


def worker_of(environment: dict[str, str]) -> tuple[int, int]:
    """(rank, workers) as torchrun (RANK, WORLD_SIZE) or Slurm (SLURM_PROCID, SLURM_STEP_NUM_TASKS) say; (0, 1) else.

    Raises InputError: numbers that are none.
    """
    for rank, workers in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if rank in environment and workers in environment:
            try:
                own, count = int(environment[rank]), int(environment[workers])
            except ValueError:
                own, count = -1, 0
            if not 0 <= own < count:
                raise InputError(
                    f"{rank} is {environment[rank]} and {workers} {environment[workers]}: they must be integers, the "
                    f"first from 0 to below the second"
                )
            return own, count
    return 0, 1
