"""The codebook: noise as a pure function, searched without being stored. Usable without the levels above it.

The noise law (law, reference), the operations (ops, Codebook) and what computes them (backends, build, library_cache).
"""

from typing import TYPE_CHECKING

from ddcm_fast.lazy import exports

if TYPE_CHECKING:
    from ddcm_fast.codebook.codebook import Codebook
    from ddcm_fast.codebook.law import KINDS, CodebookSpec

__all__ = ["KINDS", "Codebook", "CodebookSpec"]

__getattr__, __dir__ = exports(
    __name__,
    {
        "ddcm_fast.codebook.codebook": ("Codebook",),
        "ddcm_fast.codebook.law": ("KINDS", "CodebookSpec"),
    },
)
