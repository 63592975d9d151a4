"""The package's levels: what imports what, read from the sources. Arrows point downwards, and there is no circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: From the bottom up. A part may import those before it, and modules of its own.
LEVELS = (
    *("lazy", "errors", "files", "codebook", "measure", "sampling", "models", "codec"),
    *("tasks", "pillow", "app", "bulk", "evaluation", "cli", "doctor", "bench"),
)


def sources() -> dict[str, Path]:
    """Module name -> file, of the package and the Triton kernels (installed as ddcm_fast.kernels)."""
    found = {}
    for folder, name in ((ROOT / "ddcm_fast", "ddcm_fast"), (ROOT / "kernels", "ddcm_fast.kernels")):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((name, *(part for part in parts if part != "__init__")))] = path
    return found


SOURCES = sources()


def imports(module: str) -> Iterator[tuple[str, str | None]]:
    """(module, name or None) of everything that a module imports from the package, wherever in its file."""
    path = SOURCES[module]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name.startswith("ddcm_fast"))
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            if base.split(".")[0] == "ddcm_fast":
                for alias in node.names:
                    inner = f"{base}.{alias.name}"
                    yield (inner, None) if inner in SOURCES else (base, alias.name)


def level(module: str) -> int:
    """Position in LEVELS; the kernels are the codebook's."""
    part = module.split(".")[1] if "." in module else ""
    return LEVELS.index("codebook" if part == "kernels" else part) if part else len(LEVELS)


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_imports_point_downwards(module: str) -> None:
    for target, name in imports(module):
        if target == "ddcm_fast":  # the version, which the package's own file says
            assert name == "__version__", f"{module} imports {name} from the package's top"
            continue
        assert level(target) <= level(module), f"{module} imports {target}"


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_private_names_stay_at_home(module: str) -> None:
    for target, name in imports(module):
        last = name if name is not None else target.rsplit(".", 1)[-1]
        assert last.startswith("__") or not last.startswith("_"), f"{module} imports {last} from {target}"


def test_no_circles() -> None:
    graph = {module: {target for target, _ in imports(module) if target in SOURCES} for module in SOURCES}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail[trail.index(module) :], module))
        if module not in done:
            for target in sorted(graph[module]):
                visit(target, (*trail, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())
