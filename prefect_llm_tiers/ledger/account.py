"""What it came to: the account of a step run, and what happened when."""

from collections import defaultdict
from datetime import datetime
from decimal import Decimal

from sqlalchemy import Connection, and_, case, func, insert, or_, select

from prefect_llm_tiers.core.outcomes import Billing, OutcomeKind, Usage
from prefect_llm_tiers.core.runs import Event, Spending
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.ledger.database import Database
from prefect_llm_tiers.ledger.schema import attempts, events, outcomes, setbacks, step_runs

__all__ = ["Account", "log"]


def log(
    connection: Connection,
    subject: str,
    subject_id: str | int,
    *,
    before: str | None,
    after: str,
    at: datetime,
    detail: str | None = None,
) -> None:
    """Append an event in the transaction that makes the change."""
    connection.execute(
        insert(events).values(
            subject=subject, subject_id=str(subject_id), before=before, after=after, at=at, detail=detail
        )
    )


_TOKENS = (
    outcomes.c.input_tokens,
    outcomes.c.cached_input_tokens,
    outcomes.c.cache_write_tokens,
    outcomes.c.output_tokens,
    outcomes.c.reasoning_tokens,
)

_ABANDONED = "abandoned"

_LABEL = case(
    (outcomes.c.attempt_id.is_(None), func.coalesce(attempts.c.closed, "open")),
    (or_(outcomes.c.standing.in_(("superseded", "aside")), outcomes.c.attempt_id == setbacks.c.aside), "superseded"),
    else_=outcomes.c.kind,
).label("label")

_SPENT_BY = (
    attempts.c.tier,
    outcomes.c.tier_served,
    _LABEL,
    outcomes.c.billing,
    outcomes.c.cost_usd,
    outcomes.c.list_usd,
)

# Grouped by the amounts themselves, which are text here and are added as decimals below: exact, and a
# run whose rows cost much the same reads a few hundred lines instead of all its attempts.
_SPENT = (
    select(*_SPENT_BY, func.count().label("attempts"), *(func.sum(column) for column in _TOKENS))
    .select_from(
        step_runs.join(attempts, attempts.c.step_run == step_runs.c.number)
        .outerjoin(outcomes, outcomes.c.attempt_id == attempts.c.id)
        .outerjoin(
            setbacks,
            and_(setbacks.c.step_run == attempts.c.step_run, setbacks.c.request_id == attempts.c.request_id),
        )
    )
    # By its name: the expression holds parameters, and PostgreSQL takes no two of them for the same.
    .group_by(*(column if column is not _LABEL else _LABEL.name for column in _SPENT_BY))
)


class _Line:
    """The sums of one line of the account while it grows."""

    def __init__(self) -> None:
        self.attempts = self.billed = self.billed_unknown = self.unpriced = 0
        self.tokens = [0, 0, 0, 0, 0]
        self.cost_usd = self.list_usd = Decimal(0)


class Account:
    """The account and the history of a ledger."""

    _database: Database

    def spending(self, step_run_id: str) -> list[Spending]:
        """Return what a step run's attempts came to, one line for each tier and outcome.

        An answer that was set aside, or that came when another one counted, is `superseded`. A live
        call that was abandoned is a `retry` that may be billed. Sums are exact.
        """
        with self._database.read() as connection:
            rows = connection.execute(_SPENT.where(step_runs.c.id == step_run_id)).all()
        lines: dict[tuple[str, str | None, str], _Line] = defaultdict(_Line)
        for tier, served, found, told, cost, list_cost, count, *tokens in rows:
            abandoned = found == _ABANDONED
            label, billing = (OutcomeKind.RETRY.value, Billing.UNKNOWN) if abandoned else (found, told)
            line = lines[tier, served, label]
            line.attempts += count
            if billing == Billing.BILLED:
                line.billed += count
                line.unpriced += 0 if cost is not None else count
            elif billing == Billing.UNKNOWN:
                line.billed_unknown += count
            line.cost_usd += Decimal(cost or 0) * count
            line.list_usd += Decimal(list_cost or 0) * count
            line.tokens = [total + int(more or 0) for total, more in zip(line.tokens, tokens, strict=True)]
        return [
            Spending(
                tier_asked=Tier(tier),
                tier_served=None if served is None else Tier(served),
                outcome=label,
                attempts=line.attempts,
                billed=line.billed,
                billed_unknown=line.billed_unknown,
                unpriced=line.unpriced,
                usage=Usage(*line.tokens),
                cost_usd=line.cost_usd,
                list_usd=line.list_usd,
            )
            for (tier, served, label), line in sorted(
                lines.items(), key=lambda item: (item[0][0], item[0][1] or "", item[0][2])
            )
        ]

    def events(self, subject: str, subject_id: str) -> list[Event]:
        """Return what happened to a `batch` or a `step_run`, in order."""
        query = (
            select(events)
            .where(events.c.subject == subject, events.c.subject_id == subject_id)
            .order_by(events.c.sequence)
        )
        with self._database.read() as connection:
            return [Event(**row._mapping) for row in connection.execute(query)]
