"""Run the benchmarks named on the command line, or all of them."""

import json
import subprocess
import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import measure, names


def main(arguments: Sequence[str]) -> int:
    """Print a table for a benchmark, then its metrics as one line of JSON, the last of the output.

    Without a name every benchmark runs, each in a process of its own so that none warms another's caches.

    Returns:
        The exit status: 0, 2 for a name that no benchmark has, or that of the first one that failed.
    """
    match arguments:
        case []:
            codes = [
                subprocess.run([sys.executable, "-m", "benchmarks", name], check=False).returncode for name in names()
            ]
            return next((code for code in codes if code), 0)
        case [name] if name in names():
            _report(name, measure(name))
            return 0
        case _:
            print(f"usage: python -m benchmarks [{' | '.join(names())}]", file=sys.stderr)
            return 2


def _report(name: str, metrics: dict[str, float]) -> None:
    table = Table(title=name, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("metric")
    table.add_column("value", justify="right")
    for metric, value in metrics.items():
        table.add_row(metric, f"{value:,.4g}")
    Console().print(table)
    print(json.dumps({"bench": name, "metrics": metrics}, allow_nan=False), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
