"""Entries a second in the tables and the JSON of `pytest benchmarks/`."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest


@pytest.hookimpl(hookwrapper=True)
def pytest_benchmark_group_stats() -> Generator[None, Any, None]:
    """Beside each name; the table's own columns are pytest-benchmark's."""
    outcome = yield
    for _, found in outcome.get_result():
        for row in found:
            row["name"] += f"  {row['extra_info']['entries'] / row['median']:.2e} entries/s"


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """`entries_per_s` in the extra_info of each benchmark."""
    for row in output_json["benchmarks"]:
        row["extra_info"]["entries_per_s"] = row["extra_info"]["entries"] / row["stats"]["median"]
