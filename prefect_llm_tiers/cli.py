"""The command line: `prefect-llm-tiers`."""

import sys
from typing import Annotated

from cyclopts import App, Parameter

from prefect_llm_tiers.errors import LLMTiersError

__all__ = ["app", "main"]

app = App(name="prefect-llm-tiers", help="Service tiers, deadlines and batches for LLM steps in Prefect.")
simulate = App(name="simulate", help="A provider in a box.")
app.command(simulate)


@simulate.command
def serve(
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(help="0 takes a free one.")] = 0,
    speed: Annotated[float, Parameter(help="Simulated seconds in a real one.")] = 600.0,
    seed: Annotated[int, Parameter(help="Changes every draw of the world.")] = 0,
) -> None:
    """Serve a simulated OpenAI and Anthropic until Ctrl-C; its account is at /_simulator/account."""
    from prefect_llm_tiers.simulator.server import serve as run
    from prefect_llm_tiers.simulator.settings import WorldSettings

    run(host=host, port=port, speed=speed, settings=WorldSettings(seed=seed))


def main() -> None:
    """Run a command; an error of this package is told in one line, with exit code 1."""
    try:
        app()
    except LLMTiersError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
