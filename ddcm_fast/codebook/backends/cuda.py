"""The cuda backend: kernels of csrc/cuda behind their plain C interface (docs/kernels/cuda.md).

The shared library is compiled by nvcc at first use, for the GPU at hand, and cached (ddcm_fast/codebook/build.py,
library_cache.py). Where it cannot be built, `unavailable` says why and the triton backend serves.

Every operation runs on torch's current stream, takes its workspace from torch's caching allocator and reads the
step on the device: nothing waits for the GPU, and calls can be captured in a CUDA graph (after one call
outside the capture, which builds the library and uploads the table of the gaussian kind).
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ddcm_fast.codebook import library_cache
from ddcm_fast.codebook.backends.base import Backend, Chosen, search_by_scores
from ddcm_fast.codebook.backends.hardware import gpu
from ddcm_fast.codebook.build import BuildError, cuda_library
from ddcm_fast.codebook.law import CodebookSpec, gaussian_table
from ddcm_fast.errors import BackendError

MIN_CAPABILITY = (8, 0)

#: Blocks of a cluster that every GPU of compute capability 9.0 or later can hold.
MAX_CLUSTER = 8

#: Rows of a batch are searched in turn where their fragments and scores would need more than this.
WORKSPACE_LIMIT = 60 << 20


class _Spec(ctypes.Structure):
    """struct ddcm::Spec of csrc/cuda/plan.h."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("multiprocessors", ctypes.c_int32),
        ("max_cluster", ctypes.c_int32),
        ("bit_products", ctypes.c_int32),
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
    "ddcm_trellis_workspace": (_INT64, _INT64),
    "ddcm_rotate": (_POINTER, _POINTER, _INT64, _INT, _POINTER),
    "ddcm_enter": (_POINTER, _POINTER, _INT64, _POINTER, _POINTER, _INT64, _POINTER),
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
    "ddcm_trellis": (_POINTER, _INT64, _POINTER, _INT64, _POINTER, _POINTER, _POINTER, _POINTER),
    "ddcm_combine": (
        *(_POINTER, _POINTER, _INT64, _INT64, _POINTER, _POINTER, _POINTER, _POINTER),
    ),
}


# ---- the library -----------------------------------------------------------------------------------------


def build(capability: tuple[int, int]) -> Path:
    """The library for a compute capability, compiled unless it is cached.

    Raises BackendError with a summary when there is no nvcc or it fails.
    """
    try:
        return library_cache.ensure(cuda_library(capability))
    except BuildError as error:
        raise BackendError(str(error)) from error


def _open(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes = (ctypes.POINTER(_Spec), *arguments)
        function.restype = _INT64 if name.endswith("_workspace") else _INT
    library.ddcm_error_string.argtypes = (_INT,)
    library.ddcm_error_string.restype = ctypes.c_char_p
    return library


@cache
def _load(capability: tuple[int, int]) -> ctypes.CDLL | str:
    """The library for a compute capability, or why there is none."""
    try:
        return _open(build(capability))
    except (BackendError, OSError) as error:
        return str(error)


def _check(library: ctypes.CDLL, code: int) -> None:
    if code != 0:
        text = library.ddcm_error_string(code).decode()
        raise BackendError(
            f"a CUDA kernel could not be started: {text}; choose another backend with --backend or DDCM_BACKEND"
        )


def batches(
    library: ctypes.CDLL, batch: int, c_spec: _Spec, name: str, *arguments: int, least: int = 8
) -> Iterator[slice]:
    """Cut a batch so that each part's workspace stays under the limit, where parts of `least` rows can."""
    workspace, rows = getattr(library, name), batch
    while rows > least and workspace(c_spec, rows, *arguments) > WORKSPACE_LIMIT:
        rows = -(-rows // 16) * 8 if rows > 8 else rows // 2
    return (slice(b, min(b + rows, batch)) for b in range(0, batch, rows))


def _chosen(w: Tensor, shape: tuple[int, ...]) -> Chosen:
    return (
        torch.empty(shape, dtype=torch.int64, device=w.device),
        torch.empty(shape, dtype=torch.int8, device=w.device),
        torch.empty(shape, dtype=torch.float32, device=w.device),
    )


def _rows_of(*results: Tensor) -> Callable[[slice], tuple[int, ...]]:
    """Where the rows of a part are written."""
    return lambda rows: tuple(result[rows].data_ptr() for result in results)


def _bias(spec: CodebookSpec, bias: Tensor | None) -> tuple[int | None, int]:
    if bias is None:
        return None, 0
    return bias.data_ptr(), 0 if bias.dim() == 1 else spec.size


# ---- the backend -----------------------------------------------------------------------------------------


class Cuda(Backend):
    """The operations on the tensors of a GPU.

    Args:
        path: shared library with the C interface of csrc/cuda/interface.h; None for that of each device's compute
            capability, built at first use. The host emulation of the kernels has the same interface and takes CPU
            tensors; the tests use this class for both.
        multiprocessors: overrides the device's count, from which the kernels choose how to cut the work.
        max_cluster: overrides the most blocks of a cluster: MAX_CLUSTER where the device has clusters, else 1.
        bit_products: overrides whether the matrix units multiply single bits: compute capability 8.0 to 9.0.
    """

    automatic = ("cuda",)
    speed = 300
    holds_scores = False

    def __init__(
        self,
        path: Path | None = None,
        multiprocessors: int | None = None,
        max_cluster: int | None = None,
        bit_products: bool | None = None,
    ) -> None:
        self._library = None if path is None else _open(path)
        self._multiprocessors = multiprocessors
        self._max_cluster = max_cluster
        self._bit_products = bit_products
        self._tables: dict[torch.device, Tensor] = {}

    def unavailable(self, device: torch.device) -> str | None:
        """Why it cannot serve a device, or None. The first call for a GPU compiles the kernels."""
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
        library = _load(capability)
        return library if isinstance(library, str) else None

    def identity(self, device: torch.device) -> str:
        return f"{Path(self._library_for(device)._name).stem} on {gpu(device)}"

    # ---- operations --------------------------------------------------------------------------------------

    def enter(self, spec: CodebookSpec, residual: Tensor, together: bool) -> tuple[Tensor, Tensor | None]:
        # The rotation also scales, by powers of two found from the peaks.
        peaks = torch.linalg.vector_norm(residual, math.inf, dim=(0, 1) if together else 1)
        out, unit = torch.empty_like(residual), residual.new_empty(len(residual), 1)
        library, c_spec = self._library_for(residual.device), self._spec(spec, residual.device)
        with self._on(residual.device) as stream:
            _check(
                library,
                library.ddcm_enter(
                    *(c_spec, residual.data_ptr(), peaks.data_ptr(), int(not together)),
                    *(out.data_ptr(), unit.data_ptr(), len(residual), stream),
                ),
            )
        return out, unit

    def to_codebook_order(self, spec: CodebookSpec, residual: Tensor) -> Tensor:
        return self._rotate(spec, residual, inverse=False)

    def to_image_order(self, spec: CodebookSpec, y: Tensor) -> Tensor:
        return self._rotate(spec, y, inverse=True)

    def search(self, spec: CodebookSpec, w: Tensor, step: Tensor, signed: bool, bias: Tensor | None) -> Chosen:
        chosen = _chosen(w, (len(w), spec.groups))
        self._in_parts("search", spec, w, step, (), (*_bias(spec, bias), signed), _rows_of(*chosen))
        return chosen

    def search_range(
        self, spec: CodebookSpec, w: Tensor, step: Tensor, signed: bool, bias: Tensor | None, first: int, last: int
    ) -> Chosen:
        def scores(a: int, b: int) -> Tensor:
            return self.scores_of_range(spec, w, step, a, b - a, None)

        return search_by_scores(scores, spec, signed, bias, first, last, len(w))

    def topk(self, spec: CodebookSpec, w: Tensor, step: Tensor, m: int, signed: bool, bias: Tensor | None) -> Chosen:
        chosen = _chosen(w, (len(w), spec.groups, m))
        self._in_parts("topk", spec, w, step, (m,), (m, *_bias(spec, bias), signed), _rows_of(*chosen))
        return chosen

    def scores(self, spec: CodebookSpec, w: Tensor, step: Tensor) -> Tensor:
        return self.scores_of_range(spec, w, step, 0, spec.size, None)

    def scores_and_norms(self, spec: CodebookSpec, w: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        norms = torch.empty(spec.groups, spec.size, device=w.device, dtype=torch.float32)
        return self.scores_of_range(spec, w, step, 0, spec.size, norms), norms

    def scores_of_range(
        self, spec: CodebookSpec, w: Tensor, step: Tensor, first: int, count: int, norms: Tensor | None = None
    ) -> Tensor:
        """Scores (B, G, count) of the atoms from `first` on; `norms` (G, count), if given, takes squared norms."""
        out = torch.empty(len(w), spec.groups, count, device=w.device, dtype=torch.float32)

        def outputs(rows: slice) -> tuple[int | None, ...]:
            # Norms are the same for all rows.
            return out[rows].data_ptr(), norms.data_ptr() if norms is not None and rows.start == 0 else None

        self._in_parts("scores", spec, w, step, (count,), (first, count), outputs)
        return out

    def trellis_search(self, spec: CodebookSpec, w: Tensor, step: Tensor, letter_bits: int) -> Tensor:
        letters = torch.empty(len(w), spec.groups, dtype=torch.int64, device=w.device)
        # A row's own scores and origins are most of the workspace: fewer than 8 rows are worth a part.
        self._in_parts("trellis", spec, w, step, (letter_bits,), (letter_bits,), _rows_of(letters), least=1)
        return letters

    def combine(self, spec: CodebookSpec, index: Tensor, coefficient: Tensor, step: Tensor) -> Tensor:
        index, coefficient = index.contiguous(), coefficient.contiguous()
        batch, _, m = index.shape
        y = torch.empty(batch, spec.dim, device=index.device, dtype=torch.float32)
        library = self._library_for(index.device)
        with self._on(index.device) as stream:
            table = self._table(index.device).data_ptr()
            _check(
                library,
                library.ddcm_combine(
                    *(self._spec(spec, index.device), index.data_ptr(), coefficient.data_ptr()),
                    *(batch, m, step.data_ptr(), table, y.data_ptr(), stream),
                ),
            )
        return y

    # ---- helpers ---------------------------------------------------------------------------------------

    def _in_parts(
        self,
        name: str,
        spec: CodebookSpec,
        w: Tensor,
        step: Tensor,
        sizes: tuple[int, ...],
        given: tuple[int | None, ...],
        outputs: Callable[[slice], tuple[int | None, ...]],
        least: int = 8,
    ) -> None:
        """Run ddcm_`name` on parts of a batch: `sizes` decide its workspace, `outputs` are the addresses for rows."""
        w = w.contiguous()
        c_spec, library = self._spec(spec, w.device), self._library_for(w.device)
        workspace_size, run = getattr(library, f"ddcm_{name}_workspace"), getattr(library, f"ddcm_{name}")
        with self._on(w.device) as stream:
            tables = self._table(w.device).data_ptr()
            for rows in batches(library, len(w), c_spec, f"ddcm_{name}_workspace", *sizes, least=least):
                part = w[rows]
                workspace = torch.empty(workspace_size(c_spec, len(part), *sizes), dtype=torch.uint8, device=w.device)
                inputs = (c_spec, part.data_ptr(), len(part), step.data_ptr(), *given, tables)
                _check(library, run(*inputs, workspace.data_ptr(), *outputs(rows), stream))

    def _library_for(self, device: torch.device) -> ctypes.CDLL:
        if self._library is not None:
            return self._library
        library = _load(torch.cuda.get_device_capability(device))
        if isinstance(library, str):
            raise BackendError(f"backend 'cuda' cannot serve {device}, choose another or auto: {library}")
        return library

    def _rotate(self, spec: CodebookSpec, x: Tensor, inverse: bool) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        library, c_spec = self._library_for(x.device), self._spec(spec, x.device)
        with self._on(x.device) as stream:
            _check(library, library.ddcm_rotate(c_spec, x.data_ptr(), out.data_ptr(), len(x), inverse, stream))
        return out

    def _spec(self, spec: CodebookSpec, device: torch.device) -> _Spec:
        count, cluster, bits = self._multiprocessors, self._max_cluster, self._bit_products
        if count is None or cluster is None or bits is None:
            properties = torch.cuda.get_device_properties(device)
            count = properties.multi_processor_count if count is None else count
            cluster = (MAX_CLUSTER if properties.major >= 9 else 1) if cluster is None else cluster
            bits = properties.major in (8, 9) if bits is None else bits
        return _Spec(spec.kind_number, count, cluster, bits, spec.dim, spec.size, spec.groups, spec.seed)

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
