"""Tables of the documentation, rendered from the tables of the code that they show."""

import re
from collections.abc import Iterable
from pathlib import Path

from prefect_llm_tiers.core.ports import BatchLimits
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.providers.capabilities import CAPABILITIES, Offer
from prefect_llm_tiers.providers.meanings import RULES, Rule
from prefect_llm_tiers.providers.services import SERVICES, Service

DOCS = Path(__file__).parents[1] / "docs"


def page(name: str) -> str:
    """Return a page's text."""
    return (DOCS / name).read_text(encoding="utf-8")


def rows_under(text: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table under a heading, without its head."""
    lines = text.split(f"\n{heading}\n", 1)[1].splitlines()
    table = [line for line in lines[: _end(lines)] if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def _end(lines: list[str]) -> int:
    return next((at for at, line in enumerate(lines) if line.startswith("#")), len(lines))


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    names = list(head)
    lines = [names, ["---"] * len(names), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def codes(values: Iterable[object]) -> str:
    """Return values as code, in order."""
    return ", ".join(f"`{value}`" for value in values)


def errors_table() -> str:
    """Return the table of errors by meaning."""
    head = ("meaning", "HTTP status", "code or type", "or the message says", "or it is about", "reason without a code")
    return table(head, map(_error_row, RULES))


def _error_row(rule: Rule) -> list[str]:
    return [
        rule.kind,
        _statuses(sorted(rule.statuses)),
        codes(sorted(rule.codes)),
        ", ".join(f'"{words}"' for words in rule.words),
        f"`{rule.param}`" if rule.param else "",
        f"`{rule.reason}`" if rule.reason else "`http_` and the status" if not rule.codes else "",
    ]


def _statuses(values: list[int]) -> str:
    if len(values) > 10 and values == list(range(values[0], values[-1] + 1)):
        return f"{values[0]} to {values[-1]}"
    return ", ".join(map(str, values))


def services_table() -> str:
    """Return the table of services."""
    head = ("service", "hosts", "asked where a step names no endpoint", "priced as")
    return table(head, map(_service_row, SERVICES))


def _service_row(service: Service) -> list[str]:
    return [
        f"`{service.name}`",
        codes(service.hosts),
        f"`{service.endpoint.removeprefix('/v1/')}`",
        f"`{service.known_as}`",
    ]


def offers_table() -> str:
    """Return the table of capabilities."""
    head = (
        "service",
        "models",
        "endpoints",
        "tiers, and what `service_tier` says",
        "over standard",
        "batch",
        "not established",
    )
    return table(head, map(_offer_row, CAPABILITIES))


def _offer_row(offer: Offer) -> list[str]:
    return [
        codes(offer.services),
        codes(offer.models),
        codes(sorted(endpoint.removeprefix("/v1/") for endpoint in offer.endpoints)),
        ", ".join(_tier(offer, tier) for tier in Tier if tier in offer.tiers),
        "free" if offer.free else ", ".join(f"{tier} {offer.ratios[tier]}x" for tier in Tier if _told(offer, tier)),
        _limits(offer.batch),
        ", ".join(tier for tier in Tier if tier in offer.unproven),
    ]


def _told(offer: Offer, tier: Tier) -> bool:
    return tier in offer.ratios and tier in offer.tiers


def _tier(offer: Offer, tier: Tier) -> str:
    return f"{tier} (`{offer.names[tier]}`)" if tier in offer.names else str(tier)


def _limits(limits: BatchLimits | None) -> str:
    if limits is None:
        return ""
    parts = [f"{limits.requests:,} requests", f"{limits.bytes // 1_000_000} MB"]
    parts += [f"{limits.inputs:,} inputs"] if limits.inputs is not None else []
    return f"{', '.join(parts)}; {limits.window.total_seconds() / 3600:g} h"


def shown(text: str, rendered: str) -> bool:
    """Return whether a page shows a table to the letter, whatever its columns are padded to."""
    return _squeezed(rendered) in _squeezed(text)


def _squeezed(text: str) -> str:
    return re.sub(r"[ \t]+", " ", text)
