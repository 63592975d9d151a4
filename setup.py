"""Packaging. `kernels/` installs as ddcm_fast.kernels and `csrc/` travels as package data."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["ddcm_fast", "ddcm_fast.*"]), "ddcm_fast.kernels", "ddcm_fast.csrc"],
    package_dir={"ddcm_fast.kernels": "kernels", "ddcm_fast.csrc": "csrc"},
    package_data={
        "ddcm_fast": ["py.typed", "models/weights/*/*"],
        "ddcm_fast.csrc": ["*.h", "cpu/*", "cuda/*"],
    },
)
