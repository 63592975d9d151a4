"""`ddcm app` as a process, ended as people and service managers do."""

import fcntl
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import threading
import time

import pytest
from PIL import Image

from ddcm_fast.app import work
from ddcm_fast.cli import ending, main

pytest.importorskip("gradio")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file() or path.name.startswith("ddcm-")]


def terminal():
    """In the child: the terminal that it has as standard input becomes its own, so that Ctrl-C reaches it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def served(tmp_path):
    """A page as a process on a terminal: the process, the terminal's other end, its address, its temporary files."""
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    words = [sys.executable, "-m", "ddcm_fast.cli", "app", "--model", "gaussian-field", "--port", str(free_port())]
    process = subprocess.Popen(
        words,
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        preexec_fn=terminal,
        text=True,
    )
    line = process.stdout.readline()
    assert line.startswith("the page is at http://127.0.0.1:"), process.stderr.read()
    yield process, master, line.split()[4], temporary
    assert termios.tcgetattr(slave) == before
    if process.poll() is None:
        process.kill()
    process.communicate()
    os.close(master)
    os.close(slave)


def ask(url, folder):
    """Have two pictures compressed, the second after the first, and return when the first is being so."""
    from gradio_client import Client, handle_file

    Image.effect_mandelbrot((512, 512), (-3, -2.5, 2, 2.5), 50).convert("RGB").save(folder / "a.png")
    client = Client(url, verbose=False)
    asked = handle_file(folder / "a.png"), "trellis", "a size", 1.0, 30.0
    jobs = [client.submit(*asked, api_name="/compress") for _ in range(2)]
    while not any(job.status().code.name in ("PROCESSING", "ITERATING", "FINISHED") for job in jobs):
        time.sleep(0.1)
    time.sleep(1)
    client.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("by", "status", "says"),
    [("Ctrl-C", 130, "ddcm: interrupted\n"), ("SIGINT", 130, "ddcm: interrupted\n"), ("SIGTERM", 143, "")],
)
@pytest.mark.parametrize("busy", [False, True])
def test_the_page_ends(by, status, says, busy, served, tmp_path):
    process, master, url, temporary = served
    if busy:
        ask(url, tmp_path)
        assert files(temporary)
    if by == "Ctrl-C":
        os.write(master, b"\x03")
    else:
        process.send_signal(getattr(signal, by))
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (status, "", says)
    assert files(temporary) == []


def test_a_run_in_the_midst_of_computing_does_not_hold_the_end_up(monkeypatch):
    left = threading.Event()
    busy = threading.Thread(target=left.wait, daemon=True)
    busy.start()
    monkeypatch.setattr(work, "_RUNS", {busy: threading.Event()})
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    for error, status in ((KeyboardInterrupt(), 130), (SystemExit(143), 143)):
        work.end_runs(0.01)
        with pytest.raises(type(error)), ending.ending():
            raise error
        assert ended.pop() == status
    left.set()
    busy.join()
    with pytest.raises(SystemExit), ending.ending():
        raise SystemExit(143)
    assert ended == []


def test_files_go_where_the_user_wants_and_away(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    handler = signal.getsignal(signal.SIGTERM)
    with ending.ending():
        (folder,) = tmp_path.iterdir()
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder) and folder.stat().st_mode & 0o77 == 0
        (folder / "a.png").write_bytes(b"a")
    assert list(tmp_path.iterdir()) == [] and os.environ["GRADIO_TEMP_DIR"] == str(tmp_path)
    assert signal.getsignal(signal.SIGTERM) == handler
    assert main(["app", "--port", "0"]) == 2
