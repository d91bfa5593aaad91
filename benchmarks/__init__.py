"""Measurements, side by side in one run: `python -m benchmarks` runs all of them, `... NAME` one.

A benchmark is a module of this package with a function `run() -> dict[str, float]`. It is called by its
module's name; a module whose name starts with an underscore is none. A metric bears its unit, as
`import_ms`, or is a ratio or a count.
"""

import pkgutil
from importlib import import_module
from typing import cast

__all__ = ["measure", "names"]

_SPOKEN = {"imports": "import"}
"""Names that Python's grammar keeps from being a module's."""


def names() -> list[str]:
    """Return the names of all benchmarks, in alphabetical order, without importing any."""
    return sorted(_modules())


def measure(name: str) -> dict[str, float]:
    """Run a benchmark and return its metrics in the order it gives them.

    Raises:
        KeyError: There is no benchmark of this name.
    """
    module = import_module(f"{__name__}.{_modules()[name]}")
    return cast("dict[str, float]", module.run())


def _modules() -> dict[str, str]:
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return {_SPOKEN.get(name, name): name for name in found if not name.startswith("_")}
