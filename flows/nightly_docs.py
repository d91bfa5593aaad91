"""The main job: summarize and label real documents every night, in the cheapest tiers that meet one due time.

Without arguments it asks a simulated provider about the docstrings of Python's standard library, in simulated
time: eight hours pass in seconds, and no key is needed. With `--provider NAME` it asks a real account.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Literal

import polars as pl
from prefect import flow
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from flows.standard_library import documents, documents_of
from prefect_llm_tiers import Chain, LLMStep, LLMTiersError, SimulatedProvider, llm_step
from prefect_llm_tiers.blocks import load_provider

PERIOD = timedelta(hours=8)
MODELS = {"openai": "gpt-6-luna", "anthropic": "claude-haiku-5-5"}

WORLD = "nightly-docs"
SUMMARIES = SimulatedProvider(dialect="openai", world=WORLD, stuck_batches="anthropic:0", seed=7)
LABELS = SimulatedProvider(dialect="anthropic", world=WORLD, stuck_batches="anthropic:0", seed=7)


class Label(BaseModel):
    """What kind of page a document is."""

    topic: Literal["api", "howto", "concept"]
    confidence: float


@llm_step(provider=SUMMARIES, model=MODELS["openai"], max_output_tokens=200)
def summary(title: str, body: str) -> str:
    """Ask for a two-sentence summary."""
    return f"Summarize for an on-call engineer, in two sentences.\n\n# {title}\n{body}"


@llm_step(provider=LABELS, model=MODELS["anthropic"], output=Label, max_output_tokens=100)
def label(title: str, summary: str, audience: str = "engineers") -> str:
    """Ask which kind of page this is."""
    return f"Label this summary for {audience}.\n\n# {title}\n{summary}"


@flow(name="nightly-docs")
def nightly_docs(
    docs: str | None = None,
    *,
    provider: str | None = None,
    label_provider: str | None = None,
    limit: int = 600,
    due_hours: float = PERIOD / timedelta(hours=1),
    out: str = "nightly_docs.parquet",
) -> pl.DataFrame:
    """Summarize and label documents, and write them as Parquet.

    Args:
        docs: Folder of one's own documents; by default the standard library's docstrings.
        provider: Name of a provider block; by default a simulated provider.
        label_provider: Name of the block that labels; by default the one that summarizes.
        limit: How many documents at most.
        due_hours: Hours from the run's start until everything must be done.
        out: Path of the Parquet file.
    """
    found = documents_of(Path(docs))[:limit] if docs else documents(limit)
    columns = dict.fromkeys(("id", "title", "body"), pl.String)
    frame = pl.DataFrame([(doc.id, doc.title, doc.body) for doc in found], schema=columns, orient="row")
    summarize, classify = steps(provider, label_provider or provider)
    with Chain(summarize, classify, due=timedelta(hours=due_hours), on_time=0.99) as chain:
        frame = summarize(frame)
        frame = classify(frame)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(out)
    show(chain)
    return frame


def steps(provider: str | None, label_provider: str | None) -> tuple[LLMStep, LLMStep]:
    """Return both steps, on real accounts where some are named."""
    return (
        on_account(summary, provider) if provider else summary,
        on_account(label, label_provider) if label_provider else label,
    )


def on_account(step: LLMStep, provider: str) -> LLMStep:
    """Return a step that asks another account, for a model that is offered there."""
    block = load_provider(provider)
    return step.with_options(provider=block, model=MODELS[block.dialect_name])


def show(chain: Chain) -> None:
    """Print what the run came to."""
    table = Table(title="What the night came to")
    for heading in ("step", "rows", "served", "tokens in", "tokens out", "paid", "list price", "saved", "on time"):
        table.add_column(heading, justify="left" if heading in ("step", "served", "on time") else "right")
    for report in chain.report():
        by_tier: dict[str, int] = {}
        for line in report.lines:
            if line.tier_served is not None:
                by_tier[line.tier_served] = by_tier.get(line.tier_served, 0) + line.attempts
        served = [f"{count:,} {tier}" for tier, count in by_tier.items()]
        if report.reused:
            served.append(f"{report.reused:,} answered before")
        table.add_row(
            report.step,
            f"{report.rows:,}",
            "\n".join(served) or "-",
            f"{sum(line.usage.input_tokens for line in report.lines):,}",
            f"{sum(line.usage.output_tokens for line in report.lines):,}",
            f"${report.paid_usd:.6f}",
            f"${report.list_usd:.6f}",
            f"${report.saved_usd:.6f}",
            "no" if report.late else "yes",
        )
    Console(width=120).print(table)


def show_account() -> None:
    """Print what the simulated provider says it was asked and would have billed."""
    account = SUMMARIES.simulation().account()
    print(
        f"The simulated provider counts {account.asked:,} requests asked and ${account.billed_usd} billed; "
        f"{account.asked_more_than_once:,} were paid for more than once."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the job from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--docs", metavar="DIR", help="folder of your own .md, .rst and .txt files")
    parser.add_argument("--provider", metavar="BLOCK", help="name of a provider block; spends real money")
    parser.add_argument("--label-provider", metavar="BLOCK", help="name of the block that labels")
    parser.add_argument("--limit", type=int, default=600, help="how many documents at most (default: 600)")
    parser.add_argument("--due-hours", type=float, default=PERIOD / timedelta(hours=1))
    parser.add_argument("--out", default="nightly_docs.parquet", help="the Parquet file to write")
    given = parser.parse_args(arguments)
    try:
        frame = nightly_docs(
            docs=given.docs,
            provider=given.provider,
            label_provider=given.label_provider,
            limit=given.limit,
            due_hours=given.due_hours,
            out=given.out,
        )
    except (LLMTiersError, NotADirectoryError) as error:
        # Prefect has logged where; what to do about it is in the message.
        sys.exit(f"error: {error}")
    sample = frame.filter(pl.col("label").is_not_null()).head(3)
    for row in sample.to_dicts():
        print(f"{row['id']}: {row['label']['topic']} ({row['label']['confidence']:.2f}) - {row['summary']}")
    print(f"{frame.height:,} documents written to {os.path.relpath(given.out)}")
    if given.provider is None:
        show_account()


if __name__ == "__main__":
    main()
