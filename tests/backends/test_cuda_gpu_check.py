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
from backend_checks import Case
from building import COMPILER
from test_cuda_emulation import library  # noqa: F401  (a fixture)

from ddcm_fast.codebook import backends
from ddcm_fast.codebook.backends import cuda

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_check.py"
sys.path.insert(0, str(SCRIPT.parent))

import gpu_check  # noqa: E402
import sass  # noqa: E402
from gpu import baselines, checks, measurements  # noqa: E402
from gpu import report as reports  # noqa: E402
from gpu.parts import PARTS, named  # noqa: E402
from gpu.report import Report  # noqa: E402

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err.strip() == "gpu_check needs a CUDA GPU that torch can use; there is none here"


def test_rehearsal_needs_neither_the_package_nor_diffusers(tmp_path: Path) -> None:
    """From a plain checkout, another directory, with diffusers made unimportable; run again it replaces its results."""
    (tmp_path / "diffusers.py").write_text("raise ImportError('not here')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "DDCM_BACKEND": "", "TRITON_INTERPRET": "0"}
    command = [sys.executable, str(SCRIPT), "--output", str(tmp_path / "out"), "--device", "cpu"]
    counts = []
    for _ in range(2):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "checks passed" in done.stdout.splitlines()[-1]
        written = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
        assert written["passed"] and not written["errors"] and {c["part"] for c in written["checks"]} == {
            f"quick cpu {kind}" for kind in gpu_check.KINDS
        }
        counts.append(len(written["checks"]))
    assert counts[0] == counts[1] > 50


PROGRAMS = {
    "hang": "import time; time.sleep(100)",
    "crash": "import os; os.abort()",
    "well": "import json, sys; json.dump({'checks': [{'backend': 'cuda', 'what': 'it', 'ok': True}], "
    "'measurements': [], 'errors': [], 'skipped': []}, open(sys.argv[1], 'w'))",
}


class Broken(gpu_check.Driver):
    """A driver whose parts are small programs: one part hangs, one is killed as by an illegal access, one is well."""

    def _start(self, part: gpu_check.Part, limit: float) -> subprocess.Popen[bytes]:
        self.parts.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", PROGRAMS[part.name], str(self._report(part))]
        return subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)


def test_a_part_that_hangs_or_crashes_ends_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    driver = Broken(tmp_path, "cuda")
    parts = [gpu_check.Part("hang", 1), gpu_check.Part("crash", 60), gpu_check.Part("well", 60)]
    driver.run([parts, [gpu_check.Part("well", 60, title="again")]], gpu_check.BUDGET["check"])
    written = json.loads((tmp_path / "gpu_check.json").read_text())
    errors = {e["section"]: e["error"] for e in written["errors"]}
    assert errors == {"hang": "the part took more than 1 s", "crash": "the part was ended by signal SIGABRT"}
    assert [c["part"] for c in written["checks"]] == ["well", "again"] and not written["passed"]
    assert "hang: the part took more than 1 s" in capsys.readouterr().out


def test_a_stage_ends_with_its_budget(tmp_path: Path) -> None:
    driver = Broken(tmp_path, "cuda")
    driver.run(gpu_check.stage_measure(), 0.0)
    assert len(driver.data["skipped"]) == len(gpu_check.stage_measure()) and not driver.data["errors"]


def test_every_part_has_its_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "find_sanitizer", lambda: "/opt/compute-sanitizer")
    parts = [part for stage in (gpu_check.stage_check("cuda"), gpu_check.stage_measure()) for g in stage for part in g]
    called: list[tuple[object, ...]] = []
    for name, function in list(PARTS.items()):
        count = function.__code__.co_argcount
        monkeypatch.setitem(
            PARTS, name, lambda *given, name=name, count=count: called.append((name, len(given) == count))
        )
    for part in parts:
        named(part.name)(None, "cuda")
    assert all(right for _, right in called) and {name for name, _ in called} == PARTS.keys() - {"model"}
    assert len({part.label for part in parts}) == len(parts)
    for kind in gpu_check.KINDS:
        assert any(part.by and part.name == f"memcheck {kind}" for part in parts)


@pytest.fixture
def emulated(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """The cuda backend on CPU tensors; clocks and graphs replaced."""
    kernels = cuda.Cuda(library, multiprocessors=4, max_cluster=8, bit_products=True)
    monkeypatch.setattr(kernels, "unavailable", lambda device: None)
    monkeypatch.setattr(kernels, "asked", lambda device: False)
    monkeypatch.setattr(backends, "load", lambda name: kernels)
    for module in (measurements, baselines):
        monkeypatch.setattr(module, "DEVICE", "cpu")
        monkeypatch.setattr(module, "timed", lambda run, limit=0.0, repeats=0: (run(), (1e-3, 7))[1])
    monkeypatch.setattr(measurements, "graphed", lambda run: run)
    monkeypatch.setattr(measurements, "issue_bound", lambda kind: 1e12)


@needs_compiler
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("kind", gpu_check.KINDS)
def test_checks_pass_on_the_emulated_kernels(tmp_path: Path, kind: str) -> None:
    report = Report(tmp_path / "gpu_check.json", 600)
    checks.check_shape(report, "cuda", kind, (77, 50, 3, 2), "cpu")
    checks.check_large(report, "cuda", Case(kind, 200, 90, 2), "cpu")
    checks.check_kind(report, "cuda", kind, "cpu")
    checks.check_trellises(report, "cuda", kind, True, "cpu")
    assert len(report.data["checks"]) == 13 and not report.failures()


@needs_compiler
@pytest.mark.usefixtures("emulated")
def test_checks_fail_on_wrong_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = backends.load("cuda")
    right = module.search
    monkeypatch.setattr(module, "search", lambda *a: (right(*a)[0] * 0, *right(*a)[1:]))
    report = Report(tmp_path / "gpu_check.json", 600)
    checks.check_shape(report, "cuda", "sign", (30, 50, 1, 1), "cpu")
    assert {c["what"].split()[0] for c in report.failures()} == {"search"}
    assert [c["reason"] for c in report.failures()] == ["not the best atoms"]


@needs_compiler
@pytest.mark.usefixtures("emulated")
def test_measurements_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    library: Path,  # noqa: F811
) -> None:
    properties = SimpleNamespace(multi_processor_count=132, major=9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(cuda, "build", lambda capability: library)
    report = Report(tmp_path / "gpu_check.json", 600)
    for kind in gpu_check.KINDS:
        report.guard(kind, lambda k=kind: measurements.measure_search(report, "cuda", k, 64, 50, 2))
    report.guard("others", lambda: measurements.measure_others(report, "cuda", 8, 1030, (100,)))
    report.guard("clusters", lambda: measurements.measure_clusters(report, (64, 50, 1)))
    report.guard("trellis", lambda: measurements.measure_trellis(report, "cuda", 64, 3, 2, 3))
    report.guard("baselines", lambda: baselines.measure_torch_baselines(report, 40, 30))
    report.guard("chunks", lambda: baselines.measure_torch_baselines(report, 2000, 3, False))
    monkeypatch.setattr(torch, "compile", lambda function: function)
    report.guard("compiled", lambda: baselines.measure_compiled_baseline(report, 40, 30))
    report.guard("broken", lambda: baselines.compile_library("no_such.cu", tmp_path))
    report.data["reach"] = reports.reach(report.data)
    text = reports.summary(report.data)
    assert [e["section"] for e in report.data["errors"]] == ["broken"]
    assert len(report.data["measurements"]) == 3 + 15 + 4 + 2 + 6 + 2 + 1 + 6
    assert "not measured" in text and "of issue bound" in text and "section broken" in text
    json.loads((tmp_path / "gpu_check.json").read_text())


def test_missing_curand_header_skips_its_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = tmp_path / "nvcc"
    failing.write_text("#!/bin/sh\necho 'fatal error: curand_kernel.h: No such file or directory' >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setattr(baselines, "nvcc", lambda: [str(failing)])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    report = Report(tmp_path / "gpu_check.json", 600)
    report.guard("c", lambda: baselines.measure_curand_baseline(report, 40, 30))
    assert not report.data["errors"] and "curand_kernel.h" in report.data["skipped"][0]["reason"]
    assert "skipped baseline (c" in reports.summary(report.data)


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
    with checks.one_configuration():
        assert pruned.early_config_prune(pruned.configs, {}, B=1) == [2]
        assert free.early_config_prune(free.configs, {}, B=1) == [1]
    assert pruned.early_config_prune is prune and free.early_config_prune is None


def test_reach_reads_the_names_that_are_measured(tmp_path: Path) -> None:
    report = Report(tmp_path / "gpu_check.json", 600)
    large = "K=1048576 D=36864 B=1"
    report.measure("cuda gaussian K=16384 D=16384 B=1", 1e-3, entries_per_s=2e12, peak_bytes=5)
    report.measure(f"cuda sign {large}", 1e-3, entries_per_s=4e13, peak_bytes=6)
    report.measure(f"cuda hadamard {large}", 3e-5, peak_bytes=7)
    report.measure("cuda sign K=16384 D=16384 B=256", 1e-3)
    report.measure("baseline (randn + GEMM, bfloat16) K=16384 D=16384 B=256", 4e-3)
    report.measure("cuda rotation to codebook D=262144", 1e-5, peak_bytes=7)
    for dtype in ("float16", "float32"):
        report.measure(f"baseline (a) {dtype} K=16384 D=16384", 4e-3)
    rows = reports.reach(report.data)
    assert all(row["met"] for row in rows) and len(rows) == 8


def test_time_runs_out(tmp_path: Path) -> None:
    report = Report(tmp_path / "gpu_check.json", 0.0)
    report.guard("late", lambda: pytest.fail("must not run"))
    assert "out of time" in report.data["skipped"][0]["reason"] and not report.data["errors"]


def test_curand_headers_of_wheels_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = tmp_path / "nvidia" / "cu13" / "include"
    headers.mkdir(parents=True)
    (headers / "curand_kernel.h").touch()
    (tmp_path / "nvidia" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    assert f"-I{headers}" in baselines.curand_includes()


@pytest.mark.skipif(sass.find_nvcc() is None, reason="no nvcc")
@pytest.mark.parametrize("source", ["curand_baseline.cu", "rates.cu"])
def test_baselines_compile(tmp_path: Path, source: str) -> None:
    try:
        cubin = sass.compile_cubin(90, tmp_path, SCRIPT.parent / source, baselines.curand_includes())
    except subprocess.CalledProcessError as error:
        if "curand_kernel.h" in error.stderr and "No such file" in error.stderr:
            pytest.skip("the cuRAND headers are not here")
        pytest.fail(error.stderr)
    assert cubin.stat().st_size > 0
