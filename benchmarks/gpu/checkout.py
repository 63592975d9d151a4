"""Makes ddcm_fast importable from this checkout: on a machine where it is not installed, and diffusers neither."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]


class _KernelsFinder(importlib.abc.MetaPathFinder):
    """Finds ddcm_fast.kernels in kernels/, as setup.py's package_dir does for an installed package."""

    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "ddcm_fast.kernels":
            return None
        folder = REPOSITORY / "kernels"
        return importlib.util.spec_from_file_location(
            fullname, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


def use_checkout() -> None:
    """Import ddcm_fast from this checkout, without running its __init__ (which needs diffusers)."""
    if "ddcm_fast" in sys.modules:
        return
    package = ModuleType("ddcm_fast")
    package.__path__ = [str(REPOSITORY / "ddcm_fast")]
    sys.modules["ddcm_fast"] = package
    sys.meta_path.insert(0, _KernelsFinder())
    sys.path[:0] = [str(REPOSITORY / "benchmarks"), str(REPOSITORY / "tests")]
