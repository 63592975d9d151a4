"""Compressing and decompressing many: one command, several workers, interruptions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddcm_fast.cli import main

CODING = ["--model", "gaussian-field", "--preset", "ddcm", "-T", "4", "-K", "64"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve pictures of two sizes in two folders, and one that is none."""
    rng = np.random.default_rng(0)
    for i in range(12):
        path = tmp_path / "in" / ("deep" if i % 2 else ".") / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16 + 16 * (i % 3 == 0), 32, 3), dtype=np.uint8)).save(path)
    (tmp_path / "in/bad.png").write_text("years of notes")
    return tmp_path / "in"


def results(folder: Path, ending: str = ".ddcm") -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob(f"*{ending}"))}


def start(pictures: Path, output: Path, rank: int, workers: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(workers), "OMP_NUM_THREADS": "1"}
    options = [*CODING, "--batch-size", "3", "-q"]
    command = [sys.executable, "-m", "ddcm_fast.cli", "compress", str(pictures), str(output), *options]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)


def test_there_and_back(pictures, tmp_path, capsys):
    assert main(["compress", str(pictures), str(tmp_path / "out"), *CODING]) == 3
    out, err = capsys.readouterr()
    assert "12 done, 0 were there, 1 failed" in out and "1 of 13 failed" in err and err.count("\n") == 1
    assert sorted(results(tmp_path / "out"))[-1] == "deep/11.ddcm" and len(results(tmp_path / "out")) == 12
    assert main(["compress", str(pictures), str(tmp_path / "out"), *CODING, "--json"]) == 3
    out, _ = capsys.readouterr()
    facts = json.loads(out)
    assert (facts["done"], facts["skipped"], facts["failed"]) == (0, 12, 1)
    assert main(["decompress", str(tmp_path / "out"), str(tmp_path / "back"), "--format", "webp"]) == 0
    back = sorted((tmp_path / "back").rglob("*.webp"))
    assert len(back) == 12 and Image.open(back[0]).size == (32, 32)
    one = tmp_path / "one.webp"
    assert main(["decompress", str(tmp_path / "out/00.ddcm"), str(one)]) == 0
    assert one.read_bytes() == (tmp_path / "back/00.webp").read_bytes()


def test_files_are_those_of_one_by_one(pictures, tmp_path, capsys):
    assert main(["compress", str(pictures / "deep"), str(tmp_path / "out"), *CODING, "--limit", "2", "-q"]) == 0
    assert set(results(tmp_path / "out")) == {"01.ddcm", "03.ddcm"}
    one = tmp_path / "one.ddcm"
    assert main(["compress", str(pictures / "deep/03.png"), str(one), *CODING, "-q"]) == 0
    assert one.read_bytes() == (tmp_path / "out/03.ddcm").read_bytes()


def test_batches_write_the_same_bytes(pictures, tmp_path, capsys):
    coding = ["--model", "photo", "--dtype", "float32", "--preset", "ddcm", "-T", "3", "-K", "256"]
    small = pictures / "deep/05.png"
    Image.new("RGB", (8, 8)).save(small)  # below what can be coded
    for size, name in (("1", "alone"), ("3", "together")):
        arguments = ["compress", str(pictures), str(tmp_path / name), *coding, "--batch-size", size]
        assert main(arguments) == 3
        assert "11 done, 0 were there, 2 failed" in capsys.readouterr().out
        back = ["decompress", str(tmp_path / name), str(tmp_path / f"{name} back"), "--batch-size", size, "-q"]
        assert main([*back, "--dtype", "float32"]) == 0
    assert results(tmp_path / "alone") == results(tmp_path / "together")
    assert results(tmp_path / "alone back", ".png") == results(tmp_path / "together back", ".png")
    lines = [json.loads(line) for line in (tmp_path / "together/ddcm-manifest.jsonl").read_text().splitlines()]
    assert sorted(line["batch"] for line in lines if line["status"] == "done") == [1, 1, *[3] * 9]
    Image.new("RGB", (32, 16), "green").save(small)  # and it goes on with what is left, in another batch size
    assert main(["compress", str(pictures), str(tmp_path / "together"), *coding, "--batch-size", "2"]) == 3
    assert "1 done, 11 were there, 1 failed" in capsys.readouterr().out


def test_a_dry_run_writes_nothing(pictures, tmp_path, capsys):
    arguments = ["compress", str(pictures), str(tmp_path / "out"), *CODING, "--dry-run"]
    assert main([*arguments, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert 0 < facts["network_hours"] + facts["search_hours"] < facts["hours"] and facts["measured_seconds"] > 0
    assert facts["images"] == facts["to_do"] == 13 and 300 < facts["bytes"] < 700 and facts["hours"] > 0
    assert main(arguments) == 0 and "13 of 13 images to do" in capsys.readouterr().out
    assert main([*arguments, "--bpp", "0.01"]) == 0 and "about 0 bytes and 0 hours" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_another_setting_makes_them_again(pictures, tmp_path, capsys):
    for seed in ("1", "2", "2"):
        main(["compress", str(pictures / "deep"), str(tmp_path / "out"), *CODING, "--seed", seed])
    said = capsys.readouterr().out.splitlines()
    assert ["6 done, 0 were" in said[0], "6 done, 0 were" in said[1], "0 done, 6 were" in said[2]] == [True] * 3


@pytest.mark.slow
def test_four_workers_in_batches_one_killed(pictures, tmp_path):
    main(["compress", str(pictures), str(tmp_path / "alone"), *CODING, "-q"])
    output = tmp_path / "out"
    workers = [start(pictures, output, rank, 4) for rank in range(4)]
    while not results(output) and workers[2].poll() is None:
        time.sleep(0.01)
    workers[2].send_signal(signal.SIGKILL)
    statuses = [worker.wait() for worker in workers]
    for worker in workers:
        worker.stderr.close()
    assert set(statuses) <= {0, 3, -signal.SIGKILL}
    again = start(pictures, output, 2, 4)
    _, said = again.communicate()
    assert again.returncode in (0, 3), said
    assert results(output) == results(tmp_path / "alone")
    assert not list(output.rglob(".ddcm-*"))
    assert main(["compress", str(pictures), str(output), *CODING, "-q"]) == 3  # the bad one; all others are there
    assert sum('"done"' in path.read_text() for path in output.glob("ddcm-manifest.jsonl")) == 0


@pytest.mark.slow
def test_ray_writes_the_same_bytes(pictures, tmp_path, capsys):
    pytest.importorskip("ray")
    main(["compress", str(pictures), str(tmp_path / "alone"), *CODING, "-q"])
    arguments = ["compress", str(pictures), str(tmp_path / "out"), *CODING, "--engine", "ray", "--actors", "2"]
    assert main(arguments) == 3
    assert "12 done, 0 were there, 1 failed" in capsys.readouterr().out
    assert results(tmp_path / "out") == results(tmp_path / "alone")
