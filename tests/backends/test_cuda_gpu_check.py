"""benchmarks/gpu_check.py without a GPU: its arguments, its dry run, and its checks and measurements emulated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from backend_checks import GPU_LARGE_CASES, Case
from building import COMPILER
from test_cuda_emulation import library  # noqa: F401  (a fixture)

from ddcm_fast.codebook import backends
from ddcm_fast.codebook.backends import cuda

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_check.py"
sys.path.insert(0, str(SCRIPT.parent))

import gpu_check  # noqa: E402
import sass  # noqa: E402

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err.strip() == "gpu_check needs a CUDA GPU that torch can use; there is none here"


def test_dry_run_needs_neither_the_package_nor_diffusers(tmp_path: Path) -> None:
    """From a plain checkout, another directory, with diffusers made unimportable."""
    (tmp_path / "diffusers.py").write_text("raise ImportError('not here')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "DDCM_BACKEND": "", "TRITON_INTERPRET": "0"}
    command = [sys.executable, str(SCRIPT), "--output", str(tmp_path / "out"), "--device", "cpu", "--quick"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checks passed" in done.stdout.splitlines()[-1]
    written = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
    assert written["passed"] and len(written["checks"]) > 50 and not written["errors"]


@pytest.fixture
def emulated(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """The cuda backend on CPU tensors; clocks and graphs replaced."""
    kernels = cuda.Cuda(library, multiprocessors=4, max_cluster=8)
    monkeypatch.setattr(kernels, "unavailable", lambda device: None)
    monkeypatch.setattr(kernels, "asked", lambda device: False)
    monkeypatch.setattr(backends, "load", lambda name: kernels)
    monkeypatch.setattr(gpu_check, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_check, "timed", lambda run, limit=0.0, repeats=0: (run(), (1e-3, 7))[1])
    monkeypatch.setattr(gpu_check, "graphed", lambda run: run)
    monkeypatch.setattr(gpu_check, "issue_bound", lambda kind: 1e12)


@needs_compiler
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("kind", gpu_check.KINDS)
def test_checks_pass_on_the_emulated_kernels(tmp_path: Path, kind: str) -> None:
    report = gpu_check.Report(tmp_path, 600)
    gpu_check.check_shape(report, "cuda", kind, (77, 50, 3, 2), "cpu")
    gpu_check.check_large(report, "cuda", Case(kind, 200, 90, 2), "cpu")
    gpu_check.check_kind(report, "cuda", kind, "cpu")
    assert len(report.data["checks"]) == 9 and not report.failures()


@needs_compiler
@pytest.mark.usefixtures("emulated")
def test_checks_fail_on_wrong_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = backends.load("cuda")
    right = module.search
    monkeypatch.setattr(module, "search", lambda *a: (right(*a)[0] * 0, *right(*a)[1:]))
    report = gpu_check.Report(tmp_path, 600)
    gpu_check.check_shape(report, "cuda", "sign", (30, 50, 1, 1), "cpu")
    assert {c["what"].split()[0] for c in report.failures()} == {"search"}
    assert [c["reason"] for c in report.failures()] == ["not the best atoms"]


@needs_compiler
@pytest.mark.usefixtures("emulated")
def test_measurements_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    library: Path,  # noqa: F811
) -> None:
    properties = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(cuda, "build", lambda capability: library)
    report = gpu_check.Report(tmp_path, 600)
    for kind in gpu_check.KINDS:
        report.guard(kind, lambda k=kind: gpu_check.measure_search(report, "cuda", k, 64, 50, 2))
    report.guard("others", lambda: gpu_check.measure_others(report, "cuda", 8, 1030, (100,)))
    report.guard("clusters", lambda: gpu_check.measure_clusters(report, (64, 50, 40)))
    report.guard("baselines", lambda: gpu_check.measure_torch_baselines(report, 40, 30))
    report.guard("chunks", lambda: gpu_check.measure_torch_baselines(report, 2000, 3, False))
    monkeypatch.setattr(torch, "compile", lambda function: function)
    report.guard("compiled", lambda: gpu_check.measure_compiled_baseline(report, 40, 30))
    report.guard("broken", lambda: gpu_check.compile_library("no_such.cu", tmp_path))
    report.data["reach"] = gpu_check.reach(report)
    text = gpu_check.summary(report)
    assert [e["section"] for e in report.data["errors"]] == ["broken"]
    assert len(report.data["measurements"]) == 3 + 15 + 4 + 2 + 6 + 2 + 1
    assert "not measured" in text and "of issue bound" in text and "section broken" in text
    json.loads((tmp_path / "gpu_check.json").read_text())


def test_every_section_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole run on a GPU, its sections replaced by a list of their names and cases."""
    called: list[tuple[str, ...]] = []
    properties = SimpleNamespace(name="mock", multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(backends, "why_not", lambda name, device: None)
    names = [n for n in vars(gpu_check) if n.startswith(("check_", "measure_"))]
    for name in [*set(names) - {"check_backend", "measure_backend", "measure_baselines"}, "count_instructions"]:
        monkeypatch.setattr(
            gpu_check, name, lambda report, *case, name=name: called.append((name, *map(str, case)))
        )
    report = gpu_check.Report(tmp_path, 600)
    gpu_check.run(report, "cuda", False)
    assert not report.data["errors"] and not report.data["skipped"]
    order = [(name, *case[:1]) for name, *case in called]
    baselines = order.index(("measure_bounds",))
    assert order.index(("count_instructions",)) < order.index(("measure_search", "cuda")) < baselines
    assert baselines < order.index(("check_shape", "triton")) < order.index(("measure_search", "triton"))
    for name in ("clusters", "torch_baselines", "curand_baseline", "compiled_baseline", "sign_b1"):
        assert any(n == f"measure_{name}" for n, *_ in order)
    searched = {tuple(case) for name, *case in called if name == "measure_search"}
    for kind in gpu_check.KINDS:
        for batch in ("1", "8", "64", "256"):
            assert ("cuda", kind, "16384", "16384", batch) in searched
    assert sum(name == "check_large" for name, *_ in called) == 2 * len(GPU_LARGE_CASES) - 1


def test_missing_curand_header_skips_its_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = tmp_path / "nvcc"
    failing.write_text("#!/bin/sh\necho 'fatal error: curand_kernel.h: No such file or directory' >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setattr(gpu_check, "nvcc", lambda: [str(failing)])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    report = gpu_check.Report(tmp_path, 600)
    report.guard("c", lambda: gpu_check.measure_curand_baseline(report, 40, 30))
    assert not report.data["errors"] and "curand_kernel.h" in report.data["skipped"][0]["reason"]
    assert "skipped baseline (c" in gpu_check.summary(report)


def test_triton_gets_its_configurations_back(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from ddcm_fast.kernels import search_gaussian, search_sign

    def prune(configs: list[int], arguments: dict, **meta: int) -> list[int]:
        return [config for config in configs if config > meta["B"]]

    # The interpreter's kernels have nothing to choose from.
    pruned, free = (SimpleNamespace(configs=[1, 2, 3], early_config_prune=p) for p in (prune, None))
    for module in (search_gaussian, search_sign):
        monkeypatch.setattr(module, "large_kernel", pruned)
        monkeypatch.setattr(module, "small_kernel", free)
    with gpu_check.one_configuration():
        assert pruned.early_config_prune(pruned.configs, {}, B=1) == [2]
        assert free.early_config_prune(free.configs, {}, B=1) == [1]
    assert pruned.early_config_prune is prune and free.early_config_prune is None


def test_reach_reads_the_names_that_are_measured(tmp_path: Path) -> None:
    report = gpu_check.Report(tmp_path, 600)
    large = "K=1048576 D=36864 B=1"
    report.measure("cuda gaussian K=16384 D=16384 B=1", 1e-3, entries_per_s=2e12, peak_bytes=5)
    report.measure(f"cuda sign {large}", 2e-3, entries_per_s=2e13, peak_bytes=6)
    report.measure(f"cuda hadamard {large}", 1e-4, peak_bytes=7)
    report.measure("cuda rotation to codebook D=262144", 1e-5, peak_bytes=7)
    for dtype in ("float16", "float32"):
        report.measure(f"baseline (a) {dtype} K=16384 D=16384", 4e-3)
    rows = gpu_check.reach(report)
    assert all(row["met"] for row in rows) and len(rows) == 7


def test_time_runs_out(tmp_path: Path) -> None:
    report = gpu_check.Report(tmp_path, 0.0)
    report.guard("late", lambda: pytest.fail("must not run"))
    assert "out of time" in report.data["skipped"][0]["reason"] and not report.data["errors"]


def test_curand_headers_of_wheels_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = tmp_path / "nvidia" / "cu13" / "include"
    headers.mkdir(parents=True)
    (headers / "curand_kernel.h").touch()
    (tmp_path / "nvidia" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    assert f"-I{headers}" in gpu_check.curand_includes()


@pytest.mark.skipif(sass.find_nvcc() is None, reason="no nvcc")
@pytest.mark.parametrize("source", ["sign_b1.cu", "curand_baseline.cu"])
def test_baselines_compile(tmp_path: Path, source: str) -> None:
    try:
        cubin = sass.compile_cubin(90, tmp_path, SCRIPT.parent / source, gpu_check.curand_includes())
    except subprocess.CalledProcessError as error:
        if "curand_kernel.h" in error.stderr and "No such file" in error.stderr:
            pytest.skip("the cuRAND headers are not here")
        pytest.fail(error.stderr)
    assert cubin.stat().st_size > 0
