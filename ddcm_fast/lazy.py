"""What is imported when it is first used: torch alone takes seconds, which a command that prints a help text or reads a
file's header does not need. `exports` is for the public names of packages (PEP 562), `deferred` for what a module that
such a command needs uses only in its functions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def exports(
    package: str, names: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package.

    Args:
        package: its name. names: module -> what the package exports of it. None may be called as one of the package's
            own modules is, which takes the name when it is imported.
    """
    homes = {name: module for module, exported in names.items() for name in exported}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *homes})


class _Deferred:
    """Stands for a module or a name of it until it is first used: its attributes are that one's, and so is a call."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def _get(self) -> Any:
        module = import_module(self._module)
        value = getattr(module, self._name) if self._name else module
        _settle()
        return value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._get(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._get()(*args, **kwargs)


#: (namespace, name in it, module, name in that or "") of what is not imported yet.
_waiting: list[tuple[dict[str, Any], str, str, str]] = []


def _settle() -> None:
    """Put the things themselves in the places of those that stand for them, wherever their modules are imported by now.

    All at once: torch.compile can trace functions that use torch, but not the import behind a stand-in.
    """
    for entry in list(_waiting):
        namespace, name, module, own = entry
        found = sys.modules.get(module)
        if found is not None and (not own or hasattr(found, own)):
            namespace[name] = getattr(found, own) if own else found
            _waiting.remove(entry)


def deferred(namespace: dict[str, Any], **names: str) -> None:
    """Give a module names of what is imported when one of them is first used: `torch="torch"` for a module,
    `Codebook="ddcm_fast.codebook.codebook:Codebook"` for something that is called.

    The module imports the same under TYPE_CHECKING, and uses it in functions only.
    """
    for name, target in names.items():
        module, _, own = target.partition(":")
        namespace[name] = _Deferred(module, own)
        _waiting.append((namespace, name, module, own))
    _settle()
