"""Import the agent in a fresh interpreter and print, as JSON, what each top-level package cost of its own.

Run as a script. Each module's execution is timed and weighed without those that it imports; what the interpreter
had loaded before counts for nobody.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import os
import sys
import time
from types import ModuleType
from typing import Any

_PAGE = os.sysconf("SC_PAGE_SIZE")


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * _PAGE


class Weigher(importlib.abc.MetaPathFinder):
    """First on ``sys.meta_path``: finds as the others do, and wraps what they found."""

    def __init__(self) -> None:
        self.packages: dict[str, dict[str, float]] = {}
        self._nested: list[list[float]] = [[0.0, 0.0]]

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """Find the module elsewhere; weigh its execution."""
        began = time.perf_counter()
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            if finder is self or find is None:
                continue
            spec: importlib.machinery.ModuleSpec | None = find(name, path, target)
            if spec is not None:
                self._charge(name, time.perf_counter() - began, 0)
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    self._wrap(name, spec.loader)
                return spec
        return None

    def _wrap(self, name: str, loader: Any) -> None:
        execute = loader.exec_module

        def weighed(module: ModuleType) -> None:
            self._nested.append([0.0, 0.0])
            began, before = time.perf_counter(), _resident()
            try:
                execute(module)
            finally:
                taken, grown = time.perf_counter() - began, _resident() - before
                inside = self._nested.pop()
                self._nested[-1][0] += taken
                self._nested[-1][1] += grown
                self._charge(name, taken - inside[0], grown - inside[1])

        loader.exec_module = weighed

    def _charge(self, name: str, seconds: float, memory: float) -> None:
        top = name.partition(".")[0]
        package = "standard library" if top in sys.stdlib_module_names else top
        cost = self.packages.setdefault(package, {"ms": 0.0, "mib": 0.0})
        cost["ms"] += seconds * 1000
        cost["mib"] += memory / 2**20


def main() -> None:
    """Weigh ``vpccni.app``, imported as the agent's entry does."""
    weigher = Weigher()
    sys.path.insert(0, os.getcwd())
    began, before = time.perf_counter(), _resident()
    sys.meta_path.insert(0, weigher)
    from vpccni.__main__ import _import_structlog_alone

    _import_structlog_alone()
    import vpccni.app  # noqa: F401

    sys.meta_path.remove(weigher)
    total = {"total_ms": (time.perf_counter() - began) * 1000, "total_mib": (_resident() - before) / 2**20}
    print(json.dumps({**total, "packages": weigher.packages}))


if __name__ == "__main__":
    main()
