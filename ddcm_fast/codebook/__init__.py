"""The codebook: noise as a pure function, searched without being stored. Usable without the levels above it.

The noise law (law, reference), the operations (ops, Codebook) and what computes them (backends, build, library_cache).
"""

from ddcm_fast.codebook.codebook import Codebook
from ddcm_fast.codebook.law import KINDS, CodebookSpec

__all__ = ["KINDS", "Codebook", "CodebookSpec"]
