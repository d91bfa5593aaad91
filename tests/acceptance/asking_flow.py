"""A flow in a process of its own, to be killed or cancelled: `python -m tests.acceptance.asking_flow URL LEDGER`."""

import sys
from typing import Any

import polars as pl
from prefect import flow

from prefect_llm_tiers import SimulatedProvider, llm_step

ROWS = 4


def docs() -> pl.DataFrame:
    """Return the rows that are asked about."""
    return pl.DataFrame({"body": [f"Page {number} tells how to open a valve." for number in range(ROWS)]})


def options(url: str, ledger: str) -> dict[str, Any]:
    """Return what the step is made with."""
    provider = SimulatedProvider(base_url=url)
    return {"provider": provider, "model": "gpt-6-luna", "ledger": ledger, "max_output_tokens": 200, "tiers": ["batch"]}


def summary(body: str) -> str:
    """Ask for a summary."""
    return f"Summarize.\n\n{body}"


@flow
def asking(url: str, ledger: str, *, beside: bool = False, keep: bool | None = None) -> pl.DataFrame:
    """Ask about every row in a batch; `beside` does it in a thread of the task runner's."""
    step = llm_step(**options(url, ledger), keep_batches=keep)(summary)
    return step.submit(docs()).result() if beside else step(docs())


if __name__ == "__main__":
    _, url, ledger, *words = sys.argv
    asking(url, ledger, beside="beside" in words, keep=True if "keep" in words else None)
