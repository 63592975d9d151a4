"""The cuda backend: kernels of csrc/cuda behind their plain C interface (docs/kernels/cuda.md).

The shared library is compiled by torch's extension builder at first use, for the GPU at hand, and cached by a
hash of its sources and flags; it contains no torch code, so one library serves every torch version. Where it cannot
be built, `unavailable` says why and the triton backend serves.

Every operation runs on torch's current stream, takes its workspace from torch's caching allocator and reads the
step on the device: nothing waits for the GPU, and calls can be captured in a CUDA graph (after one call
outside the capture, which builds the library and uploads the table of the gaussian kind).
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ..errors import BackendError
from ..law import CodebookSpec, gaussian_table

_log = logging.getLogger(__name__)

MIN_CAPABILITY = (8, 0)

#: Blocks of a cluster that every GPU of compute capability 9.0 or later can hold.
MAX_CLUSTER = 8

#: Rows of a batch are searched in turn where their fragments and scores would need more than this.
WORKSPACE_LIMIT = 60 << 20

NVCC_FLAGS = ("-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden")


class _Spec(ctypes.Structure):
    """struct ddcm::Spec of csrc/cuda/driver.h."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("multiprocessors", ctypes.c_int32),
        ("max_cluster", ctypes.c_int32),
        ("dim", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("groups", ctypes.c_int64),
        ("seed", ctypes.c_uint64),
    )


_INT64, _INT, _POINTER = ctypes.c_int64, ctypes.c_int, ctypes.c_void_p
_SIGNATURES: dict[str, tuple[object, ...]] = {
    "ddcm_search_workspace": (_INT64,),
    "ddcm_scores_workspace": (_INT64, _INT64),
    "ddcm_topk_workspace": (_INT64, _INT64),
    "ddcm_rotate": (_POINTER, _POINTER, _INT64, _INT, _POINTER),
    "ddcm_search": (
        *(_POINTER, _INT64, _POINTER, _POINTER, _INT64, _INT, _POINTER, _POINTER),
        *(_POINTER, _POINTER, _POINTER, _POINTER),
    ),
    "ddcm_topk": (
        *(_POINTER, _INT64, _POINTER, _INT64, _POINTER, _INT64, _INT, _POINTER, _POINTER),
        *(_POINTER, _POINTER, _POINTER, _POINTER),
    ),
    "ddcm_scores": (
        *(_POINTER, _INT64, _POINTER, _INT64, _INT64, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER),
    ),
    "ddcm_combine": (
        *(_POINTER, _POINTER, _INT64, _INT64, _POINTER, _POINTER, _POINTER, _POINTER),
    ),
}


class Kernels:
    """The operations of one compiled library on torch tensors.

    Args:
        path: shared library with the C interface of csrc/cuda/driver.h. The host emulation of the kernels
            has the same interface and takes CPU tensors; the tests use this class for both.
        multiprocessors: overrides the device's count, from which the kernels choose how to cut the work.
        max_cluster: overrides the most blocks of a cluster: MAX_CLUSTER where the device has clusters, else 1.
    """

    def __init__(self, path: Path, multiprocessors: int | None = None, max_cluster: int | None = None) -> None:
        self._library = ctypes.CDLL(str(path))
        self._multiprocessors = multiprocessors
        self._max_cluster = max_cluster
        self._tables: dict[torch.device, Tensor] = {}
        for name, arguments in _SIGNATURES.items():
            function = getattr(self._library, name)
            function.argtypes = (ctypes.POINTER(_Spec), *arguments)
            function.restype = _INT64 if name.endswith("_workspace") else _INT
        self._library.ddcm_error_string.argtypes = (_INT,)
        self._library.ddcm_error_string.restype = ctypes.c_char_p

    # ---- operations: shapes as in ddcm_fast.reference ------------------------------------------------

    def to_codebook_order(self, spec: CodebookSpec, residual: Tensor) -> Tensor:
        """See ddcm_fast.reference.to_codebook_order."""
        return self._rotate(spec, residual, inverse=False)

    def to_image_order(self, spec: CodebookSpec, y: Tensor) -> Tensor:
        """See ddcm_fast.reference.to_image_order."""
        return self._rotate(spec, y, inverse=True)

    def search(
        self, spec: CodebookSpec, w: Tensor, step: Tensor, signed: bool, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ddcm_fast.reference.search; a residual that is not finite gives index -1 and score NaN."""
        w = w.contiguous()
        index, sign, score = self._chosen(w, (len(w), spec.groups))
        c_spec = self._spec(spec, w.device)
        bias_at, bias_stride = self._bias(spec, bias)
        with self._on(w.device) as stream:
            tables = self._table(w.device)
            for rows in self._batches(len(w), c_spec, "ddcm_search_workspace"):
                part = w[rows]
                size = self._library.ddcm_search_workspace(c_spec, len(part))
                workspace = torch.empty(size, dtype=torch.uint8, device=w.device)
                self._check(
                    self._library.ddcm_search(
                        *(c_spec, part.data_ptr(), len(part), step.data_ptr(), bias_at, bias_stride),
                        *(signed, tables.data_ptr(), workspace.data_ptr()),
                        *(index[rows].data_ptr(), sign[rows].data_ptr(), score[rows].data_ptr()),
                        stream,
                    )
                )
        return index, sign, score

    def topk(
        self, spec: CodebookSpec, w: Tensor, step: Tensor, m: int, signed: bool, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ddcm_fast.reference.topk; a residual that is not finite gives index -1 and score NaN."""
        w = w.contiguous()
        index, sign, score = self._chosen(w, (len(w), spec.groups, m))
        c_spec = self._spec(spec, w.device)
        bias_at, bias_stride = self._bias(spec, bias)
        with self._on(w.device) as stream:
            tables = self._table(w.device)
            for rows in self._batches(len(w), c_spec, "ddcm_topk_workspace", m):
                part = w[rows]
                size = self._library.ddcm_topk_workspace(c_spec, len(part), m)
                workspace = torch.empty(size, dtype=torch.uint8, device=w.device)
                self._check(
                    self._library.ddcm_topk(
                        *(c_spec, part.data_ptr(), len(part), step.data_ptr(), m, bias_at, bias_stride),
                        *(signed, tables.data_ptr(), workspace.data_ptr()),
                        *(index[rows].data_ptr(), sign[rows].data_ptr(), score[rows].data_ptr()),
                        stream,
                    )
                )
        return index, sign, score

    def scores(
        self,
        spec: CodebookSpec,
        w: Tensor,
        step: Tensor,
        first: int = 0,
        count: int | None = None,
    ) -> Tensor:
        """See ddcm_fast.reference.scores; (B, G, count) of the atoms first .. first + count - 1.

        For the hadamard kind, first must be a multiple of the spec's hadamard_n.
        """
        return self._scores(spec, w, step, first, spec.size - first if count is None else count, None)

    def scores_and_norms(self, spec: CodebookSpec, w: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """See ddcm_fast.reference.scores_and_norms."""
        norms = torch.empty(spec.groups, spec.size, device=w.device, dtype=torch.float32)
        return self._scores(spec, w, step, 0, spec.size, norms), norms

    def _scores(
        self, spec: CodebookSpec, w: Tensor, step: Tensor, first: int, count: int, norms: Tensor | None
    ) -> Tensor:
        w = w.contiguous()
        out = torch.empty(len(w), spec.groups, count, device=w.device, dtype=torch.float32)
        c_spec = self._spec(spec, w.device)
        with self._on(w.device) as stream:
            tables = self._table(w.device)
            for rows in self._batches(len(w), c_spec, "ddcm_scores_workspace", count):
                part = w[rows]
                squares = norms.data_ptr() if norms is not None and rows.start == 0 else None
                size = self._library.ddcm_scores_workspace(c_spec, len(part), count)
                workspace = torch.empty(size, dtype=torch.uint8, device=w.device)
                self._check(
                    self._library.ddcm_scores(
                        *(c_spec, part.data_ptr(), len(part), step.data_ptr(), first, count),
                        *(tables.data_ptr(), workspace.data_ptr(), out[rows].data_ptr(), squares, stream),
                    )
                )
        return out

    def combine(
        self, spec: CodebookSpec, index: Tensor, coefficient: Tensor, step: Tensor
    ) -> Tensor:
        """See ddcm_fast.reference.combine; indices are clamped into range."""
        index, coefficient = index.contiguous(), coefficient.contiguous()
        batch, _, m = index.shape
        y = torch.empty(batch, spec.dim, device=index.device, dtype=torch.float32)
        with self._on(index.device) as stream:
            table = self._table(index.device).data_ptr()
            self._check(
                self._library.ddcm_combine(
                    *(self._spec(spec, index.device), index.data_ptr(), coefficient.data_ptr()),
                    *(batch, m, step.data_ptr(), table, y.data_ptr(), stream),
                )
            )
        return y

    # ---- helpers ---------------------------------------------------------------------------------------

    def _rotate(self, spec: CodebookSpec, x: Tensor, inverse: bool) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        with self._on(x.device) as stream:
            c_spec = self._spec(spec, x.device)
            self._check(
                self._library.ddcm_rotate(
                    c_spec, x.data_ptr(), out.data_ptr(), len(x), inverse, stream
                )
            )
        return out

    @staticmethod
    def _chosen(w: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        return (
            torch.empty(shape, dtype=torch.int64, device=w.device),
            torch.empty(shape, dtype=torch.int8, device=w.device),
            torch.empty(shape, dtype=torch.float32, device=w.device),
        )

    def _spec(self, spec: CodebookSpec, device: torch.device) -> _Spec:
        count, cluster = self._multiprocessors, self._max_cluster
        if count is None or cluster is None:
            properties = torch.cuda.get_device_properties(device)
            count = properties.multi_processor_count if count is None else count
            cluster = (MAX_CLUSTER if properties.major >= 9 else 1) if cluster is None else cluster
        return _Spec(spec.kind_number, count, cluster, spec.dim, spec.size, spec.groups, spec.seed)

    @staticmethod
    def _bias(spec: CodebookSpec, bias: Tensor | None) -> tuple[int | None, int]:
        if bias is None:
            return None, 0
        return bias.data_ptr(), 0 if bias.dim() == 1 else spec.size

    def _batches(self, batch: int, c_spec: _Spec, name: str, *arguments: int) -> Iterator[slice]:
        """Cut a batch so that each part's workspace stays under the limit, where parts of 8 rows can."""
        workspace, rows = getattr(self._library, name), batch
        while rows > 8 and workspace(c_spec, rows, *arguments) > WORKSPACE_LIMIT:
            rows = -(-rows // 16) * 8
        return (slice(b, min(b + rows, batch)) for b in range(0, batch, rows))

    def _table(self, device: torch.device) -> Tensor:
        """T as int16, then as float16 bits: what struct ddcm::Tables expects."""
        if device not in self._tables:
            q = gaussian_table()
            self._tables[device] = torch.cat((q, q.half().view(torch.int16))).to(device)
        return self._tables[device]

    @staticmethod
    @contextlib.contextmanager
    def _on(device: torch.device) -> Iterator[int | None]:
        """Make a device current and give its current stream."""
        if device.type != "cuda":
            yield None
            return
        with torch.cuda.device(device):
            yield torch.cuda.current_stream(device).cuda_stream

    def _check(self, code: int) -> None:
        if code != 0:
            text = self._library.ddcm_error_string(code).decode()
            raise BackendError(f"a CUDA kernel could not be started: {text}")


# ---- building --------------------------------------------------------------------------------------------


def sources() -> Path:
    """The folder csrc: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "csrc", package.parent / "csrc"):
        if (folder / "cuda" / "kernels.cu").is_file():
            return folder
    raise BackendError("the package was installed without its CUDA sources (csrc/cuda)")


def nvcc() -> str | None:
    """Path of the nvcc that torch's extension builder uses, or None (always so where torch is built without CUDA)."""
    from torch.utils import cpp_extension

    if cpp_extension.CUDA_HOME is None:
        return None
    candidate = Path(cpp_extension.CUDA_HOME) / "bin" / "nvcc"
    return str(candidate) if candidate.is_file() else None


def _cache_folder() -> Path:
    from torch.utils import cpp_extension

    root = os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root()
    return Path(root) / "ddcm_fast"


def source_hash(*extra: str) -> str:
    """Hash of every source the kernels are made of and of the flags."""
    digest = hashlib.sha256()
    folder = sources()
    for path in (folder / "noise.h", *sorted((folder / "cuda").glob("*"))):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update("\0".join(extra).encode())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _builder_environment(capability: tuple[int, int]) -> Iterator[None]:
    """What torch's extension builder is to see: the ninja that pip put beside this Python, activated or not, and one
    capability. That of torch 2.6 adds those of all visible GPUs to what the flags say."""
    programs = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    wanted = {"PATH": programs, "TORCH_CUDA_ARCH_LIST": f"{capability[0]}.{capability[1]}"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _link_flags(compiler: str, source: Path) -> list[str]:
    """Link nvcc's own static CUDA runtime and, of the libraries that torch's builder adds, none that is not needed."""
    plan = subprocess.run([compiler, "--dryrun", str(source)], capture_output=True, text=True, check=False).stderr
    found = re.search(r"LIBRARIES=(.*)", plan)
    folders = shlex.split(found[1]) if found else []
    return [*folders, "-Wl,--as-needed", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]


def build(capability: tuple[int, int]) -> Path:
    """Compile the kernels for a compute capability, unless they are cached, with torch's extension builder.

    Returns the library. Raises BackendError with a summary when there is no nvcc or ninja, or one fails.
    """
    from torch.utils import cpp_extension

    target = f"{capability[0]}{capability[1]}"
    flags = (*NVCC_FLAGS, f"-gencode=arch=compute_{target},code=sm_{target}")
    folder = _cache_folder()
    library = folder / f"kernels-sm{target}-{source_hash(*flags)}.so"
    if library.is_file():
        return library
    compiler = nvcc()
    if compiler is None:
        raise BackendError(
            "nvcc was not found: install the CUDA toolkit or set CUDA_HOME to compile the CUDA kernels"
        )
    _log.info("compiling the CUDA kernels for sm_%s to %s", target, library)
    if sys.stderr.isatty():
        print("ddcm-fast: compiling its CUDA kernels, once (about half a minute)", file=sys.stderr)
    source = sources() / "cuda" / "kernels.cu"
    folder.mkdir(parents=True, exist_ok=True)
    # Several processes may build at once, and one may be killed while it does: the builder would leave a lock on which
    # the next waits forever. In a folder of its own no build meets another's, and the rename is atomic.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as scratch, _builder_environment(capability):
        try:
            cpp_extension.load(
                name="ddcm_fast_cuda",
                sources=[str(source)],
                extra_cuda_cflags=list(flags),
                extra_ldflags=_link_flags(compiler, source),
                build_directory=scratch,
                with_cuda=True,
                is_python_module=False,
            )
        except (RuntimeError, OSError, ValueError) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            telling = (line for line in lines if re.search("error:|nvcc fatal|cannot find", line))
            summary = next(telling, lines[-1] if lines else repr(error))
            raise BackendError(f"the CUDA kernels could not be compiled: {summary}") from error
        os.replace(next(Path(scratch).glob("*.so")), library)
    return library


@cache
def _kernels(capability: tuple[int, int]) -> Kernels | str:
    """The kernels for a compute capability, or why there are none."""
    try:
        return Kernels(build(capability))
    except (BackendError, OSError) as error:
        return str(error)


def unavailable(device: torch.device) -> str | None:
    """Why the cuda backend cannot serve a device. The first call for a GPU compiles the kernels."""
    if device.type != "cuda":
        return "it serves CUDA devices only"
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "torch sees no CUDA GPU"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        return (
            f"the GPU has compute capability {capability[0]}.{capability[1]}; "
            f"the kernels need {MIN_CAPABILITY[0]}.{MIN_CAPABILITY[1]} or later"
        )
    kernels = _kernels(capability)
    return kernels if isinstance(kernels, str) else None


def _for(tensor: Tensor) -> Kernels:
    kernels = _kernels(torch.cuda.get_device_capability(tensor.device))
    if isinstance(kernels, str):
        raise BackendError(f"backend 'cuda' cannot serve {tensor.device}: {kernels}")
    return kernels


# ---- the backend's face ------------------------------------------------------------------------------------


def to_codebook_order(spec: CodebookSpec, residual: Tensor) -> Tensor:
    """See ddcm_fast.reference.to_codebook_order."""
    return _for(residual).to_codebook_order(spec, residual)


def to_image_order(spec: CodebookSpec, y: Tensor) -> Tensor:
    """See ddcm_fast.reference.to_image_order."""
    return _for(y).to_image_order(spec, y)


def search(
    spec: CodebookSpec, w: Tensor, step: Tensor, signed: bool, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """See ddcm_fast.reference.search; a residual that is not finite gives index -1 and score NaN."""
    return _for(w).search(spec, w, step, signed, bias)


def topk(
    spec: CodebookSpec, w: Tensor, step: Tensor, m: int, signed: bool, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """See ddcm_fast.reference.topk; a residual that is not finite gives index -1 and score NaN."""
    return _for(w).topk(spec, w, step, m, signed, bias)


def scores(spec: CodebookSpec, w: Tensor, step: Tensor) -> Tensor:
    """See ddcm_fast.reference.scores."""
    return _for(w).scores(spec, w, step)


def scores_and_norms(spec: CodebookSpec, w: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """See ddcm_fast.reference.scores_and_norms."""
    return _for(w).scores_and_norms(spec, w, step)


def combine(spec: CodebookSpec, index: Tensor, coefficient: Tensor, step: Tensor) -> Tensor:
    """See ddcm_fast.reference.combine; indices are clamped into range."""
    return _for(index).combine(spec, index, coefficient, step)
