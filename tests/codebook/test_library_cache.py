"""Where libraries are looked for, kept and refused. A library of one line stands for the backends' own."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from building import COMPILER, tiny_sources

from ddcm_fast.codebook import build, library_cache
from ddcm_fast.errors import DDCMWarning

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")

SOMEBODY = 54321


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty place for the cache, in a home and with a temporary folder that are empty too."""
    tiny_sources(monkeypatch, tmp_path)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    temporary.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(build, "SHIPPED_DIR", tmp_path / "none")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("DDCM_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that something was built in."""
    done, real = [], build.build

    def counted(library: build.Library, folder: Path) -> Path:
        done.append(folder)
        return real(library, folder)

    monkeypatch.setattr(build, "build", counted)
    return done


def ensure() -> Path:
    """Without a word."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return library_cache.ensure(build.cpu_library())


def ensure_with_warning(words: str) -> Path:
    with pytest.warns(DDCMWarning, match=words) as caught:
        path = library_cache.ensure(build.cpu_library())
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    return path


def own_temporary(cache: Path) -> Path:
    return cache.parent / "tmp" / f"ddcm_fast-{os.geteuid()}"


def _made(folder: Path) -> Path:
    folder.mkdir(0o700)
    return folder


# ---- places ----------------------------------------------------------------------------------------------


def test_built_once_for_this_user_alone(cache: Path, builds: list[Path]) -> None:
    path = ensure()
    assert path.parent == cache and cache.stat().st_mode & 0o777 == 0o700
    assert ensure() == path and builds == [cache]


def test_folders(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert library_cache.temporary_folders() == [
        own_temporary(cache),
        Path("/var/tmp") / f"ddcm_fast-{os.geteuid()}",
    ]
    assert library_cache.preferred_folder() == cache
    monkeypatch.delenv("DDCM_CACHE_DIR")
    assert library_cache.preferred_folder() == cache.parent / "home" / ".cache" / "ddcm_fast"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says its specification
    assert library_cache.preferred_folder() == cache.parent / "home" / ".cache" / "ddcm_fast"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    assert library_cache.preferred_folder() == cache / "ddcm_fast"


def test_without_a_home_the_library_is_kept_among_temporary_files(
    cache: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DDCM_CACHE_DIR")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as with neither HOME nor an entry for the user
    path = ensure_with_warning("there is no home folder")
    assert path.parent == own_temporary(cache) and path.parent.stat().st_mode & 0o777 == 0o700
    assert ensure() == path and len(builds) == 1


def test_a_cache_that_all_users_share(cache: Path) -> None:
    cache.mkdir()
    cache.chmod(0o1777)
    assert ensure().parent == cache / f"ddcm_fast-{os.geteuid()}"


def test_what_was_installed_serves_whoever_owns_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build.build(build.cpu_library(), _made(build.SHIPPED_DIR))
    if os.geteuid() == 0:
        os.chown(path, SOMEBODY, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: SOMEBODY)
    assert ensure() == path


def test_a_link_to_a_folder_is_followed(cache: Path) -> None:
    target = cache.parent / "elsewhere"
    target.mkdir(0o700)
    cache.symlink_to(target)
    assert ensure().resolve().parent == target
    target.chmod(0o777)
    assert ensure_with_warning("can be written by others").parent == own_temporary(cache)


# ---- refused ---------------------------------------------------------------------------------------------


def read_only_file_system(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.mkdir

    def mkdir(path: Path, *args: object, **options: object) -> None:
        if path == cache:
            raise OSError(30, "Read-only file system")
        real(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)


def no_exec(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir()
    real = os.statvfs

    def statvfs(path: Path) -> object:
        return SimpleNamespace(f_flag=os.ST_NOEXEC) if str(path).startswith(str(cache)) else real(path)

    monkeypatch.setattr(os, "statvfs", statvfs)


def in_a_folder_for_all(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir(0o700)
    cache.chmod(0o777)
    monkeypatch.setenv("DDCM_CACHE_DIR", str(cache / "below"))
    (cache / "below").mkdir(0o700)


def of_somebody(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives folders away")
    cache.mkdir(0o755)
    os.chown(cache, SOMEBODY, -1)


def below_somebody(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_somebody(cache, monkeypatch)
    monkeypatch.setenv("DDCM_CACHE_DIR", str(cache / "below" / "it"))


REFUSED: dict[str, Callable[[Path, pytest.MonkeyPatch], object]] = {
    "can be written by others": lambda cache, _: (cache.mkdir(), cache.chmod(0o770)),
    "everyone can replace it": in_a_folder_for_all,
    "belongs to another user": of_somebody,
    "a folder of another user": below_somebody,
    "noexec": no_exec,
    "Not a directory": lambda cache, _: cache.touch(),
    "Read-only file system": read_only_file_system,
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_folder_that_will_not_do_is_said_once_a_process_and_another_taken(
    cache: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    REFUSED[words](cache, monkeypatch)
    path = ensure_with_warning(words)
    assert path.parent == own_temporary(cache)
    assert not [p for p in cache.glob("**/*") if p.is_file()]
    if words != "Read-only file system":  # which is not known before something is to be kept there
        assert ensure_with_warning(words) == path
    assert len(builds) == 1


def test_a_home_that_will_not_do_is_said_when_something_is_built(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DDCM_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    (cache / "ddcm_fast").mkdir(parents=True)
    (cache / "ddcm_fast").chmod(0o775)
    path = ensure_with_warning("can be written by others")
    assert ensure() == path


def test_nowhere_to_keep_it_says_what_to_do(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_cache, "temporary_folders", lambda: [])
    cache.touch()
    with pytest.raises(build.BuildError, match=r"^[^\n]*Not a directory[^\n]*set DDCM_CACHE_DIR[^\n]*$"):
        ensure()


def test_a_full_disk_is_no_compiler_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = cache.parent / "full"
    script.write_text(f'#!/bin/sh\ncase "$TMPDIR" in {cache}/*) echo "ld: No space left on device"; exit 1;; esac\n')
    script.write_text(script.read_text() + f'exec {COMPILER} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    assert ensure_with_warning("No space left").parent == own_temporary(cache)


# ---- damage ----------------------------------------------------------------------------------------------


def foreign(path: Path) -> None:
    """Another whole library."""
    source = path.with_suffix(".cpp")
    source.write_text("int other;\n")
    subprocess.run([str(COMPILER), "-shared", "-fPIC", str(source), "-o", str(path)], check=True)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "foreign": foreign,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_library_is_built_again_before_it_is_loaded(
    cache: Path, builds: list[Path], damage: str
) -> None:
    path = build.build(build.cpu_library(), _made(cache))
    builds.clear()
    DAMAGE[damage](path)
    again = ensure_with_warning("is damaged")
    assert again == path and build.is_intact(again) and builds == [cache]
    assert ensure() == again


def test_a_damaged_shipped_library_is_built_again_once(cache: Path, builds: list[Path]) -> None:
    path = build.build(build.cpu_library(), _made(build.SHIPPED_DIR))
    os.truncate(path, 100)
    assert ensure_with_warning("is damaged").parent == cache
    assert ensure_with_warning("is damaged").parent == cache
    assert builds == [build.SHIPPED_DIR, cache]


@pytest.mark.parametrize("change", ["writable", "somebody's", "link"])
def test_a_file_of_others_is_not_loaded(
    cache: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    path = build.build(build.cpu_library(), _made(cache))
    builds.clear()
    if change == "writable":
        path.chmod(0o775)
    elif change == "link":
        path.rename(cache.parent / "theirs")
        path.symlink_to(cache.parent / "theirs")
    elif os.geteuid() == 0:
        os.chown(path, SOMEBODY, -1)
    else:
        pytest.skip("only root gives files away")
    with pytest.warns(DDCMWarning, match="it is not loaded"):
        again = library_cache.ensure(build.cpu_library())
    assert builds == [cache] and not again.is_symlink() and again.stat().st_uid == os.geteuid()
    assert ensure() == again


def test_one_that_does_not_load_here_is_kept_for_the_system_it_is_for(cache: Path, builds: list[Path]) -> None:
    _made(cache)
    strange = cache / "strange"
    strange.write_bytes(b"of another system")
    strange = strange.rename(cache / f"{build.cpu_library().stem()}-{build._digest(strange)}.so")
    path = ensure()
    assert path != strange and strange.exists() and ensure() == path and len(builds) == 1


# ---- several builders --------------------------------------------------------------------------------------


def test_two_at_once_build_once(cache: Path, builds: list[Path]) -> None:
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(ensure())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 3 and len(set(paths)) == 1 and builds == [cache]


def test_what_killed_builds_left_is_swept(cache: Path) -> None:
    _made(cache)
    old, fresh = cache / ".build-old", cache / ".build-fresh"
    for folder in (old, fresh):
        folder.mkdir()
        (folder / "one.o").touch()
    os.utime(old, (time.time() - 86400,) * 2)
    ensure()
    assert not old.exists() and fresh.exists()
