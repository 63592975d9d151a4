"""`ddcm bench`: its table, its files, and what it refuses."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from PIL import Image

from ddcm_fast.cli import main
from ddcm_fast.cli.bench import counts
from ddcm_fast.codebook import backends

BACKEND = next(name for name in backends.available("cpu") if name != "triton")
SMALL = ["bench", "--K", "64,2^7", "--D", "2^8", "--B", "2", "--M", "4", "--device", "cpu", "--seconds", "0"]
SMALL += ["--backend", f"{BACKEND},randn,stored,fresh"]

#: Keys of a row, and the types of their values where there are some.
ROW = {
    **dict.fromkeys(("op", "by", "kind", "device", "dtype"), str),
    **dict.fromkeys(("K", "D", "B", "G", "M", "runs", "peak_bytes"), int),
    **dict.fromkeys(("ms", "least_ms", "entries_per_s", "products_per_s", "fraction_of_bound"), float),
    **{"bound_products_per_s": float, "bound": str, "skipped": str},
}


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """Small matrices for the roofs, and a folder of its own."""
    monkeypatch.setattr("ddcm_fast.measure.roofs._SIDE", 64)
    monkeypatch.setattr("ddcm_fast.measure.roofs._SECONDS", 0.0)
    monkeypatch.setattr("ddcm_fast.measure.roofs._BYTES", 1 << 16)
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    return tmp_path


def test_table_json_and_plot(quick, capsys):
    assert main([*SMALL, "--kind", "sign,gaussian", "--json", "a.json", "--plot", "a.png"]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert said.err == "" and "1 threads" in lines[0] and lines[2].split()[:3] == ["op", "by", "kind"]
    found = json.loads((quick / "a.json").read_text())
    rows = found["rows"]
    assert len(lines) == 3 + len(rows)
    assert {row["op"] for row in rows} == {"search", "topk", "combine", "noise", "rotate"}
    assert {row["by"] for row in rows} == {BACKEND, "randn", "stored", "fresh"}
    assert {(row["K"], row["D"], row["B"]) for row in rows if row["op"] == "search"} == {(64, 256, 2), (128, 256, 2)}
    for row in rows:
        assert row.keys() == ROW.keys()
        assert all(value is None or type(value) is ROW[key] for key, value in row.items())
        assert row["skipped"] is None and row["runs"] == 3 and 0 < row["least_ms"] <= row["ms"]
        made = row["K"] * row["D"] if row["op"] in ("search", "topk") else row["B"] * row["M"] * row["D"]
        assert row["entries_per_s"] == pytest.approx(made / row["ms"] * 1e3)
        served = row["B"] if row["op"] in ("search", "topk") else 1
        assert row["products_per_s"] == pytest.approx(served * row["entries_per_s"])
        if row["bound"] is not None:
            fraction = row["products_per_s"] / row["bound_products_per_s"]
            assert row["fraction_of_bound"] == pytest.approx(fraction)
    assert found["measured"]["products_per_s"] > 0 and found["measured"]["bytes_per_s"] > 0
    assert found["machine"]["threads"] == 1 and found["machine"]["name"] in lines[0]
    assert Image.open("a.png").format == "PNG" and Image.open("a.png").width > 1000


def test_the_command_in_a_file_makes_the_same_rows(quick, capsys):
    assert main([*SMALL, "--op", "noise,rotate", "--kind", "sign", "--json", "-"]) == 0
    first = json.loads(capsys.readouterr().out)
    words = first["command"].split()
    assert words[:2] == ["ddcm", "bench"] and "--json" not in words
    assert main([*words[1:], "--json", "-"]) == 0
    second = json.loads(capsys.readouterr().out)
    keys = ("op", "by", "kind", "K", "D", "B", "G", "M")
    assert [[row[key] for key in keys] for row in first["rows"]] == [[row[k] for k in keys] for row in second["rows"]]
    assert second["command"] == first["command"]


def test_progress_is_shown_on_a_terminal_only(capsys, monkeypatch):
    words = [*SMALL, "--op", "noise", "--kind", "sign"]
    assert main(words) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(words) == 0
    assert "bench:" in capsys.readouterr().err


def test_what_is_skipped_says_why(capsys):
    words = ["bench", "--op", "search", "--backend", "stored", "--kind", "sign", "--device", "cpu", "--B", "1"]
    assert main([*words, "--K", "2^32", "--D", "2^20"]) == 0
    (line,) = capsys.readouterr().out.splitlines()[3:]
    assert "would keep 1.68e+07 GiB" in line and "are free" in line


@pytest.mark.parametrize(
    "words, said",
    [
        (["--K", "2^"], "argument --K: '2^' are no numbers above 0"),
        (["--K", "0"], "'0' are no numbers above 0"),
        (["--D", "1,,2"], "'1,,2' are no numbers"),
        (["--B", "x"], "argument --B: 'x'"),
        (["--kind", "sign,cauchy"], "'cauchy' is no kind; choose among gaussian"),
        (["--op", "sort"], "'sort' is no operation; choose among search"),
        (["--backend", "numpy"], "'numpy' is no backend or baseline"),
        (["--backend", "cuda", "--device", "cpu"], "cannot serve device 'cpu'"),
        (["--device", "toaster"], "'toaster' is not here; choose among cpu"),
        (["--seconds", "nan"], "'nan' is no number of seconds"),
        (["--longest", "-1"], "'-1' is no number of seconds"),
        (["--K", "2^33"], "size (K)"),
        (["--op", "topk", "--K", "16", "--M", "17"], "M is 17"),
        (["--json", "no/a.json"], "no such folder"),
        (["--json", "notes.txt"], "notes.txt exists and is not JSON"),
        (["--plot", "notes.txt"], "notes.txt exists and is not a PNG picture"),
        (["--json", "a", "--plot", "a"], "two results would go to a"),
    ],
)
def test_what_is_refused_is_one_line_before_any_work(quick, words, said, capsys, monkeypatch):
    (quick / "notes.txt").write_text("years of notes\n")
    monkeypatch.setattr("ddcm_fast.cli.bench.measure_roofs", lambda device: pytest.fail("it began to work"))
    try:
        status = main(["bench", *words])
    except SystemExit as stop:
        status = stop.code
    err = capsys.readouterr().err
    assert status == 2 and err.count("\n") == 1 and said in err
    assert [path.name for path in quick.iterdir()] == ["notes.txt"]


def test_a_plot_needs_matplotlib(capsys, monkeypatch):
    monkeypatch.setattr("ddcm_fast.measure.plot.importlib.util.find_spec", lambda name: None)
    assert main([*SMALL, "--plot", "a.png"]) == 2
    assert "ddcm-fast[benchmarks]" in capsys.readouterr().err


def test_counts():
    assert counts("2^12,65536,4096") == (4096, 65536)
