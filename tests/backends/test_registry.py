"""Backends of other packages: found by their entry points, or registered; loaded only when asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ddcm_fast.codebook import backends
from ddcm_fast.codebook.backends import selftest
from ddcm_fast.codebook.backends.reference import Reference
from ddcm_fast.codebook.codebook import Codebook
from ddcm_fast.errors import BackendError, DDCMWarning


class Foreign(Reference):
    """Another package's backend: the reference's answers under another name, to be tested like any other."""

    automatic = ("cpu",)
    speed = 1000

    def asked(self, device: torch.device) -> bool:
        return True


class Wrong(Foreign):
    """One whose noise is not the law's."""

    def combine(self, spec, index, coefficient, step):
        return super().combine(spec, index, coefficient, step) * 1.000001


def broken():
    raise ImportError("no such device")


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package that offers backends, one of which cannot be loaded."""
    folder = tmp_path / "foreign-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign\nVersion: 1.0\n")
    here = "test_registry"
    lines = [f"foreign = {here}:Foreign", f"broken = {here}:broken", f"cpu = {here}:Foreign", f"strange = {here}:Path"]
    (folder / "entry_points.txt").write_text("\n".join([f"[{backends.GROUP}]", *lines]))
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch):
    """What a test registers goes with it."""
    monkeypatch.setattr(backends, "_LOADED", dict(backends._LOADED))
    for cached in (backends._installed, backends._warn, selftest.failure):
        cached.cache_clear()
    yield
    for cached in (backends._installed, backends._warn, selftest.failure):
        cached.cache_clear()


@pytest.mark.usefixtures("distribution")
def test_an_installed_backend_is_found_and_serves():
    assert backends.names() == ("cuda", "triton", "cpu", "reference", "foreign", "broken", "strange")
    assert not isinstance(backends.load("cpu"), Foreign)  # a built-in name is not taken
    assert isinstance(backends.load("foreign"), Foreign)
    assert backends.resolve("auto", "cpu") == "foreign" == Codebook("sign", 8, 16).backend()
    found = Codebook("sign", 8, 16, backend="foreign").search(torch.ones(1, 8), 3)
    assert torch.equal(found[0], Codebook("sign", 8, 16, backend="reference").search(torch.ones(1, 8), 3)[0])


@pytest.mark.usefixtures("distribution")
def test_one_that_cannot_be_loaded_is_missing():
    with pytest.raises(BackendError, match="'broken' cannot be imported: no such device"):
        backends.load("broken")
    with pytest.raises(BackendError, match=r"'broken' cannot serve .* no such device; available: "):
        Codebook("sign", 8, 16, backend="broken").search(torch.ones(1, 8), 0)
    assert "'strange' is no ddcm_fast" in backends.why_not("strange", "cpu")
    assert "broken" not in backends.available("cpu")


def test_registered_backends():
    backends.register("own", Foreign())
    assert backends.resolve("auto", "cpu") == "own" and "own" in backends.available("cpu")
    for taken in ("own", "cpu", "auto"):
        with pytest.raises(BackendError, match="another name"):
            backends.register(taken, Foreign())


def test_a_wrong_backend_is_refused_by_name_and_passed_over_by_auto():
    backends.register("wrong", Wrong())
    with pytest.raises(BackendError, match="self-test failed: gaussian noise of 1 rows is not what the noise law says"):
        Codebook("sign", 8, 16, backend="wrong").search(torch.ones(1, 8), 0)
    backends._warn.cache_clear()
    with pytest.warns(DDCMWarning, match="wrong: its self-test failed: gaussian noise") as caught:
        served = [backends.resolve("auto", "cpu") for _ in range(2)]
    assert served[0] == served[1] in ("cpu", "reference") and len(caught) == 1
