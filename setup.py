"""Packaging. `kernels/` installs as ddcm_fast.kernels and `csrc/` travels as package data.

The cpu backend's library is compiled here when there is a compiler, and lies in ddcm_fast/_lib; where
there is none the package installs all the same, and ddcm_fast/codebook/library_cache.py tries again at first use.
"""

import importlib.util
import shutil
import sys
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70.1
    from wheel.bdist_wheel import bdist_wheel

_ROOT = Path(__file__).parent


# By path: importing the package would import torch, which an isolated build does not have.
def _load(*path):
    file = _ROOT.joinpath(*path)
    spec = importlib.util.spec_from_file_location(f"ddcm_fast_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


build = _load("ddcm_fast", "codebook", "build.py")
index_page = _load("packaging", "index_page.py").index_page


class BuildPy(build_py):
    """Adds the cpu backend's library, for an editable install in the checkout itself."""

    def run(self):
        super().run()
        root = _ROOT if self.editable_mode else Path(self.build_lib)
        folder = root / "ddcm_fast" / build.SHIPPED_DIR.name
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            build.build(build.cpu_library(), folder)
        except (build.BuildError, OSError) as error:
            print(f"warning: ddcm-fast installs without its cpu backend: {error}", file=sys.stderr)


class BinaryDistribution(Distribution):
    """A distribution with a compiled file, though none that knows Python's ABI."""

    def has_ext_modules(self):
        return True


class BdistWheel(bdist_wheel):
    """One wheel serves every Python 3 of a platform: the library has a plain C interface."""

    def get_tag(self):
        return ("py3", "none", super().get_tag()[2])


setup(
    long_description=index_page(_ROOT / "README.md"),
    long_description_content_type="text/markdown",
    # Training serves the repository and needs its photographs; a wheel has no use for it.
    packages=[
        *find_packages(include=["ddcm_fast", "ddcm_fast.*"], exclude=["ddcm_fast.models.train"]),
        *("ddcm_fast.kernels", "ddcm_fast.csrc"),
    ],
    package_dir={"ddcm_fast.kernels": "kernels", "ddcm_fast.csrc": "csrc"},
    package_data={
        "ddcm_fast": ["py.typed", "models/weights/*/*"],
        "ddcm_fast.csrc": ["*.h", "cpu/*", "cuda/*"],
    },
    # Beside the environment's programs: of an installation with --user, where desktops look for types.
    data_files=[("share/mime/packages", ["share/ddcm.xml"]), ("share/ddcm-fast", ["share/ddcm.magic"])],
    cmdclass={"build_py": BuildPy, "bdist_wheel": BdistWheel},
    distclass=BinaryDistribution,
)
