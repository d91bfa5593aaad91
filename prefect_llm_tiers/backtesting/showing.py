"""A backtest as a table for people."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table

from prefect_llm_tiers.backtesting.replaying import HistoryReport, ScenarioReport
from prefect_llm_tiers.planning.plan import show_usd

__all__ = ["as_text"]


def as_text(report: HistoryReport | Sequence[ScenarioReport]) -> RenderableType:
    """Return a report as a table, with what it takes for granted below it."""
    return _history(report) if isinstance(report, HistoryReport) else _scenarios(report)


def _history(report: HistoryReport) -> RenderableType:
    left_out = "; ".join(f"{count:,} left out: {reason}" for reason, count in report.left_out.items())
    period = f"{report.since:%Y-%m-%d} to {report.until:%Y-%m-%d}"
    if not report.chains:
        return f"No chain that can be replayed began from {period}." + (f" {left_out}." if left_out else "")
    was = (
        f"{report.chains:,} chains from {period}: {show_usd(report.paid_usd)} paid, {show_usd(report.list_usd)} at "
        f"list price, {report.late:,} late."
    )
    table = _table("due", "chains", "would cost", "saves", "late", "no safe plan")
    for one in report.due:
        if not one.chains:
            table.add_row(one.due, "0", "", "", "", "")
            continue
        table.add_row(
            one.due,
            f"{one.chains:,}",
            show_usd(one.cost_usd),
            f"{100 * one.saved:.1f} %",
            f"{100 * one.missed:.1f} %",
            f"{one.short:,}",
        )
    drawn = f"{report.draws:,} nights for each chain and due time. What this takes for granted:"
    assumed = [f"- {line}" for line in report.assumed]
    return Group(was, *([f"{left_out}."] if left_out else []), "", table, "", drawn, *assumed)


def _scenarios(reports: Sequence[ScenarioReport]) -> RenderableType:
    table = _table("scenario", "nights", "cost", "planned", "late", "planned late", "allowed")
    for one in reports:
        table.add_row(
            one.scenario,
            f"{one.nights:,}",
            f"{one.cost:.3f}",
            f"{one.planned_cost:.3f}",
            f"{100 * one.missed:.2f} %",
            f"{100 * (1 - one.planned_chance):.2f} %",
            f"{100 * one.allowed:.2f} %",
        )
    return Group(table, "", "Cost over that of all requests on the standard tier.")


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first)
    for other in others:
        table.add_column(other, justify="right")
    return table
