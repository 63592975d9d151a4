"""The self-test's known answers are the law's; right backends pass it, and a wrong library is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddcm_fast.codebook import backends, build, library_cache
from ddcm_fast.codebook.backends import selftest

CPU = torch.device("cpu")
needs_cpu = pytest.mark.skipif(backends.missing("cpu", "cpu") is not None, reason="no cpu backend")


def test_known_answers_are_the_reference_s():
    found = dict(selftest.answers(backends.load("reference"), CPU))
    assert {question: answer for question, answer in found.items() if answer is not True} == selftest.KNOWN
    assert len(found) == 3 * (1 + 4 * len(selftest.BATCHES))


@needs_cpu
def test_a_pass_is_remembered_by_what_it_depends_on(monkeypatch, tmp_path):
    monkeypatch.setenv("DDCM_CACHE_DIR", str(tmp_path))
    backend, asked = backends.load("cpu"), []
    monkeypatch.setattr(selftest, "ask", lambda *a: asked.append(1))
    identity = backend.identity(CPU)
    for _ in range(2):
        assert selftest.failure.__wrapped__("cpu", backend, CPU) is None
    assert len(asked) == 1 and [p.read_text() for p in tmp_path.iterdir()] == [identity]
    monkeypatch.setattr(backend, "identity", lambda device: identity + " and another driver")
    assert selftest.failure.__wrapped__("cpu", backend, CPU) is None and len(asked) == 2
    for path in tmp_path.iterdir():
        path.chmod(0o666)  # now others could have written it
    selftest.failure.__wrapped__("cpu", backend, CPU)
    assert len(asked) == 3


@needs_cpu
def test_failures_are_not_remembered(monkeypatch, tmp_path):
    monkeypatch.setenv("DDCM_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(selftest, "ask", lambda *a: "wrong")
    assert selftest.failure.__wrapped__("cpu", backends.load("cpu"), CPU) == "wrong" and not list(tmp_path.iterdir())


WRONG = """
import warnings
import torch
from ddcm_fast.codebook import Codebook, backends
from ddcm_fast.errors import BackendError
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    print(Codebook("sign", 8, 16).backend(), Codebook("sign", 9, 16).backend())
print(len(said), said[0].message)
try:
    Codebook("sign", 8, 16, backend="cpu").search(torch.ones(1, 8), 0)
except BackendError as error:
    print(error)
"""


@needs_cpu
def test_a_wrong_library_is_refused(tmp_path: Path):
    """The cpu library with another Philox multiplier, whole by its name: it loads, and answers wrongly."""
    library = build.cpu_library()
    code = library_cache.ensure(library).read_bytes()
    right, wrong = (n.to_bytes(4, "little") for n in (0xD2511F53, 0xD2511F51))
    assert right in code
    planted = tmp_path / "wrong.so"
    planted.write_bytes(code.replace(right, wrong))
    planted = planted.rename(tmp_path / f"{library.stem()}-{build._digest(planted)}.so")
    planted.chmod(0o755)
    environment = {**os.environ, "DDCM_CACHE_DIR": str(tmp_path), "DDCM_BACKEND": ""}
    nothing_shipped = f"from ddcm_fast.codebook import build; build.SHIPPED_DIR = build.Path({str(tmp_path)!r})"
    command = [sys.executable, "-c", nothing_shipped + WRONG]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    served, said, refused = done.stdout.splitlines()
    assert served == "reference reference", done.stderr
    assert said.startswith("1 ") and "cpu: its self-test failed: " in said and "the slow reference serves" in said
    assert refused.startswith("backend 'cpu' cannot serve device 'cpu': its self-test failed: ")
    assert list(tmp_path.iterdir()) == [planted]
