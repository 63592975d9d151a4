"""Nothing a user has is destroyed: every command against the table of cases, and streams, links, modes, full disks."""

import contextlib
import dataclasses
import io
import os
import shutil
import socket
import stat
import sys
import threading
from pathlib import Path

import demo
import pytest
import torch
from cli_cases import ALLOWED, CODING, COMPRESS, MODEL, REFUSED
from PIL import Image

from ddcm_fast import Codec, files
from ddcm_fast.cli import main
from ddcm_fast.codec import container
from ddcm_fast.errors import InputError
from ddcm_fast.models.loading import load_model
from ddcm_fast.models.names import WEIGHTS

TO = {"foreign": "/srv/model", "dots": "../model", "hub": "owner/name", "escape": "\x1b[31mred"}


@pytest.fixture(scope="module")
def packed():
    torch.set_num_threads(1)
    codec = Codec.from_preset(load_model("digits", device="cpu"), "ddcm", T=3, K=16)
    return codec.compress(Image.linear_gradient("L").resize((8, 8)))


@pytest.fixture
def folder(packed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture = Image.linear_gradient("L").resize((8, 8))
    picture.save("digit.png")
    shutil.copy("digit.png", "nosuffix")
    shutil.copy("digit.png", "named.ddcm")
    os.link("digit.png", "same.png")
    os.symlink("digit.png", "link.png")
    Path("digit.ddcm").write_bytes(packed)
    os.chmod("digit.ddcm", 0o640)
    os.symlink("digit.ddcm", "link.ddcm")
    os.symlink("digit.ddcm", "linkpng.png")
    os.symlink("hidden.ddcm", "hole.ddcm")
    os.symlink("loop.ddcm", "loop.ddcm")
    Path("locked.ddcm").write_bytes(packed)
    os.chmod("locked.ddcm", 0o444)
    Path("empty.ddcm").touch()
    Path("empty.png").touch()
    picture.rotate(90).save("old.png")
    os.chmod("old.png", 0o600)
    picture.save("old.jpg")
    shutil.copy("old.jpg", "jpeg.png")
    for name in ("text.txt", "text.ddcm", "text.png", "text.json", "out_measured.png", "taken.ddcm"):
        Path(name).write_text("years of notes\n")
    header, payload = container.read(packed)
    for name, model in TO.items():
        Path(f"{name}.ddcm").write_bytes(container.write(dataclasses.replace(header, model=model), payload))
    for name in ("sub", "images", "mixed", "kept", "x/T=10_in999-0_K=16_M=1_C=1_model=sd"):
        Path(name).mkdir(parents=True)
    Path("x/T=10_in999-0_K=16_M=1_C=1_model=sd/x.bin").write_bytes(b"\1\2\3\4\5")
    shutil.copy("digit.png", "images")
    shutil.copy("old.jpg", "mixed/0000.png")
    shutil.copy("text.txt", "kept/digit_1_1.ddcm")
    for name in ("model", "odd"):
        shutil.copytree(WEIGHTS / "digits", name, ignore=shutil.ignore_patterns("*classifier*"))
    Path("odd/ddcm.json").write_text("years of notes\n")
    return tmp_path


def state(folder):
    """Of every file: content, mode and time, or where a link leads."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name, info = str(path.relative_to(folder)), path.lstat()
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = path.read_bytes(), stat.S_IMODE(info.st_mode), info.st_mtime_ns
        else:
            found[name] = stat.S_IFMT(info.st_mode)
    return found


def run(*args):
    try:
        return main([str(a) for a in args])
    except SystemExit as stop:
        return stop.code


def named(cases):
    return {"argvalues": cases, "ids": [ascii(" ".join(args)[:90]) for args, _ in cases]}


@pytest.mark.parametrize(("args", "says"), **named(REFUSED))
def test_refused(folder, capsys, args, says):
    if "cuda:9" in args and torch.cuda.device_count() > 9:
        pytest.skip("this machine has ten GPUs")
    before = state(folder)
    code = run(*args)
    out, err = capsys.readouterr()
    assert (code, out) == (2, "") and err.startswith("ddcm: ") and err.count("\n") == 1 and says in err, err
    assert err[:-1].isprintable()
    assert state(folder) == before


@pytest.mark.parametrize(("args", "changed"), **named(ALLOWED))
def test_allowed(folder, capsys, args, changed):
    before = state(folder)
    assert run(*args) == 0
    out, err = capsys.readouterr()
    assert err == "" and "\x1b" not in out
    after = state(folder)
    new_folders = {str(p) for name in changed for p in Path(name).parents}
    for name in before.keys() | after.keys():
        if name in changed:
            assert after[name][0] and after.get(name) != before.get(name)
            assert name not in before or after[name][1] == before[name][1], "the mode is kept"
        elif name not in new_folders:
            assert after.get(name) == before.get(name), name
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_the_demo(folder, capsys):
    before = state(folder)
    Path("sub/side-by-side.png").write_text("years of notes\n")
    for place, says in (("sub", "not a PNG picture"), ("text.txt", "name a folder")):
        assert demo.main(["--output", place]) == 2
        err = capsys.readouterr().err
        assert says in err and err.count("\n") == 1
    Path("sub/side-by-side.png").unlink()
    assert state(folder) == before


# ---- streams ---------------------------------------------------------------------------------------


class Stream(io.TextIOWrapper):
    """A standard stream of bytes in memory."""

    def __init__(self, data=b"", encoding="utf-8"):
        super().__init__(io.BytesIO(data), encoding=encoding)


def test_standard_streams(folder, packed, monkeypatch, capsys):
    out = Stream()
    monkeypatch.setattr(sys, "stdin", Stream(Path("digit.png").read_bytes()))
    monkeypatch.setattr(sys, "stdout", out)
    before = state(folder)
    assert run("compress", "-", "-", *MODEL, *CODING[:-1]) == 0
    assert out.buffer.getvalue() == packed
    assert "bpp" in capsys.readouterr().err
    for more, format in (([], "PNG"), (["--format", "webp"], "WEBP")):
        monkeypatch.setattr(sys, "stdin", Stream(packed))
        monkeypatch.setattr(sys, "stdout", Stream())
        assert run("decompress", "-", "-", *more) == 0
        assert Image.open(io.BytesIO(sys.stdout.buffer.getvalue())).format == format
    assert state(folder) == before
    monkeypatch.setattr(sys, "stdin", Stream(packed))
    assert run("info", "-") == 0
    sys.stdout.isatty = lambda: True
    assert run(*COMPRESS, "-", *MODEL) == 2
    assert "terminal" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", None)
    assert run("info", "-") == 2
    assert "closed" in capsys.readouterr().err


def test_standard_output_that_is_the_input(folder, monkeypatch, capsys):
    before = state(folder)
    with open("digit.png", "a") as appended:
        monkeypatch.setattr(sys, "stdout", appended)
        assert run(*COMPRESS, "-", *MODEL, *CODING) == 2
    assert "same file" in capsys.readouterr().err and state(folder) == before


def test_pipes_and_sockets_are_written_through(folder, packed):
    os.mkfifo("pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append(Path("pipe").read_bytes()))
    reader.start()
    assert run(*COMPRESS, "pipe", *MODEL, *CODING) == 0
    reader.join(60)
    assert got == [packed] and stat.S_ISFIFO(os.stat("pipe").st_mode)
    writer = threading.Thread(target=lambda: Path("pipe").write_bytes(packed))
    writer.start()
    assert run("decompress", "pipe", "new.png", "-q") == 0
    writer.join(60)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        server.listen()
        assert run(*COMPRESS, "socket", *MODEL, *CODING) == 0
        peer, _ = server.accept()
        with peer:
            assert peer.recv(1 << 16) == packed


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_full_disks(folder, capsys):
    resource = pytest.importorskip("resource")
    before = state(folder)
    assert run(*COMPRESS, "/dev/full", *MODEL, *CODING) == 2
    assert capsys.readouterr().err == "ddcm: cannot write /dev/full: No space left on device\n"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5, hard))
    try:
        assert run(*COMPRESS, "digit.ddcm", *MODEL, *CODING, "--seed", 9) == 2
        assert run("decompress", "digit.ddcm", "old.png", "-q") == 2
        assert run("calibrate", "--model", "model", "--images", "images", "-q") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert capsys.readouterr().err.count("File too large\n") == 3 and state(folder) == before


def test_standard_output_that_fails(folder, monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as broken:
        monkeypatch.setattr(sys, "stdout", broken)
        assert run("info", "digit.ddcm") == 141
    with contextlib.suppress(OSError), open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run("info", "digit.ddcm") == 2
    assert capsys.readouterr().err in ("", "ddcm: No space left on device\n")
    monkeypatch.setattr(sys, "stdout", None)
    assert run("info", "digit.ddcm") == 0


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(folder, capsys):
    os.chmod("sub", 0o555)
    assert run(*COMPRESS, "sub/new.ddcm", *MODEL, *CODING) == 2
    assert "Permission denied" in capsys.readouterr().err


# ---- the mechanism ---------------------------------------------------------------------------------


def test_what_appears_during_the_work_is_not_replaced(folder):
    outputs = files.Outputs(["digit.png"])
    outputs.add(Path("new.ddcm"), container.FILE)
    Path("new.ddcm").write_text("written by somebody else")
    with pytest.raises(InputError, match=r"not a \.ddcm file"):
        outputs.write(Path("new.ddcm"), b"data")
    assert Path("new.ddcm").read_text() == "written by somebody else"


def test_outputs_differ(folder):
    outputs = files.Outputs()
    outputs.add(Path("a.txt"), files.TEXT)
    for name in ("a.txt", "sub/../a.txt"):
        with pytest.raises(InputError):
            outputs.add(Path(name), files.TEXT)
    os.link("text.txt", "b.txt")
    outputs.add(Path("b.txt"), files.TEXT)
    with pytest.raises(InputError, match=r"same file as the output b\.txt"):
        outputs.add(Path("text.txt"), files.TEXT)


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_an_error_leaves_the_old_file_and_no_other(folder, monkeypatch, where):
    before = state(folder)

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, where, fail)
    with pytest.raises(InputError, match="Input/output error"):
        files.write(Path("digit.ddcm"), b"new", container.FILE)
    assert state(folder) == before


def test_data_is_on_the_disk_before_it_has_its_name(folder, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, real=real, name=name: (done.append(name), real(*a))[1])
    files.write(Path("new.ddcm"), b"data", container.FILE)
    assert done == ["fsync", "replace", "fsync"] and Path("new.ddcm").read_bytes() == b"data"


def test_kinds(folder):
    for name, kind in (("digit.ddcm", container.FILE), ("text.txt", files.TEXT), ("model/ddcm.json", files.JSON)):
        assert kind.holds(Path(name))
    Path("digit.bin").write_bytes(b"\xff\xfe\xfd")
    for kind in (container.FILE, files.TEXT, files.JSON, files.picture("PNG")):
        with pytest.raises(InputError, match="--force"):
            files.write(Path("digit.bin"), b"", kind)
    assert files.read(Path("digit.bin"), start=b"DDCM") == b"\xff\xfe\xfd"
    with pytest.raises(InputError, match="at most that"):
        files.read(Path("digit.bin"), most=2)


# ---- what is said ----------------------------------------------------------------------------------


def test_an_ascii_terminal(folder, monkeypatch, packed):
    header, payload = container.read(packed)
    Path("far.ddcm").write_bytes(container.write(dataclasses.replace(header, model="模型\u202e\x9b\n"), payload))
    monkeypatch.setattr(sys, "stdout", Stream(encoding="ascii"))
    monkeypatch.setattr(sys, "stderr", Stream(encoding="ascii"))
    assert run("info", "far.ddcm") == 0
    assert rb"model      \u6a21\u578b\u202e\x9b\n (" in sys.stdout.buffer.getvalue()
    assert run("info", "模型\udcff") == 2
    sys.stderr.flush()
    assert rb"\u6a21\u578b\udcff" in sys.stderr.buffer.getvalue()
    for command in ("", "compress", "decompress", "info", "generate", "calibrate", "restore", "edit"):
        assert run(*command.split(), "--help") == 0


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (MemoryError(), 2, "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"), 2, "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory."), 2, "out of memory"),
        (OSError(28, "No space left on device", "some\x1bfile"), 2, r"some\x1bfile: No space left"),
        (KeyError("a bug\nof ours"), 70, "KeyError"),
        (RuntimeError("boom"), 70, "DDCM_DEBUG=1"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (BrokenPipeError(), 141, None),
    ],
)
def test_one_line_for_whatever_happens(folder, monkeypatch, capsys, error, code, says):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Codec, "decode", fail)
    before = state(folder)
    assert run("decompress", "digit.ddcm", "old.png") == code
    err = capsys.readouterr().err
    assert (err == "") if says is None else (says in err and err.count("\n") == 1 and err.startswith("ddcm: "))
    assert state(folder) == before
    monkeypatch.setenv("DDCM_DEBUG", "1")
    assert run("decompress", "digit.ddcm", "old.png") == code
    assert ("Traceback" in capsys.readouterr().err) == (code in (2, 70))
