"""What `import prefect_llm_tiers` costs a process that may never use it."""

import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

__all__ = ["HEAVY", "heavy", "loaded_by", "run"]

HEAVY = frozenset(
    {
        "aiohttp",
        "alembic",
        "anthropic",
        "cyclopts",
        "fastapi",
        "genai_prices",
        "httpx",
        "httpx2",
        "msgspec",
        "numpy",
        "openai",
        "orjson",
        "polars",
        "prefect",
        "pydantic",
        "rich",
        "sqlalchemy",
        "starlette",
        "uvicorn",
    }
)
"""Top-level packages that a bare import must not load."""

_CHECKOUT = Path(__file__).parents[1]
_ROUNDS = 25


def run() -> dict[str, float]:
    """Time fresh interpreters with and without the import, in turns, so that both meet the same machine.

    Returns:
        `python_ms`, the median of a bare interpreter; `import_ms_over_python`, the median of what the
        import adds to the interpreter started just before; `modules`, how many modules it loads, and
        `heavy_modules`, how many of `HEAVY` are among them.
    """
    _start("import prefect_llm_tiers")  # writes the byte code that every later one reads
    pairs = [(_start("pass"), _start("import prefect_llm_tiers")) for _ in range(_ROUNDS)]
    loaded = loaded_by("import prefect_llm_tiers")
    return {
        "python_ms": median(bare for bare, _ in pairs) * 1000,
        "import_ms_over_python": median(full - bare for bare, full in pairs) * 1000,
        "modules": float(len(loaded)),
        "heavy_modules": float(len(heavy(loaded))),
    }


def loaded_by(statement: str) -> frozenset[str]:
    """Return the modules that a statement adds to those of a fresh interpreter."""
    script = f"import sys\nbefore = set(sys.modules)\n{statement}\nprint(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], cwd=_CHECKOUT, check=True, capture_output=True, text=True)
    return frozenset(done.stdout.split())


def heavy(modules: frozenset[str]) -> frozenset[str]:
    """Return the heavy packages that a set of modules belongs to."""
    return HEAVY & {module.partition(".")[0] for module in modules}


def _start(statement: str) -> float:
    begun = perf_counter()
    subprocess.run([sys.executable, "-c", statement], cwd=_CHECKOUT, check=True)
    return perf_counter() - begun
