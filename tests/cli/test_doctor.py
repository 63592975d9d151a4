"""`ddcm doctor` says what is here, and what is wrong with what is not."""

from __future__ import annotations

import json

import pytest

from ddcm_fast.cli import main
from ddcm_fast.codebook import backends
from ddcm_fast.codebook.backends import selftest


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Backends are timed by one search, of few atoms."""
    monkeypatch.setattr("ddcm_fast.cli.doctor._SECONDS", 0.0)
    monkeypatch.setattr("ddcm_fast.cli.doctor._REFERENCE_SIZE", 16)


def test_json_names_every_backend(capsys):
    assert main(["doctor", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in said["backends"] if row["device"] == "cpu"}
    assert set(rows) == set(backends.names())
    assert rows["reference"]["self_test"] == "passed" and rows["reference"]["speed"] > 0
    assert rows["cuda"]["missing"] == "it serves CUDA devices only" and rows["cuda"]["self_test"] is None
    assert said["packages"]["torch"] and said["caches"] and set(said["compilers"]) == {"c++", "nvcc"}


def test_a_failed_self_test_is_told(capsys, monkeypatch):
    monkeypatch.setitem(selftest.KNOWN, "sign noise of 3", 1)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    wrong = next(line for line in lines if line.startswith("reference  cpu:"))
    assert "self-test failed: sign noise of 3 rows" in wrong and "entries/s" not in wrong
