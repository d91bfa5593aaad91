"""The provider's own account held against the ledger: what was lost, sent twice, or billed and not written down."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal

import msgspec
from sqlalchemy import Engine, create_engine, select

from benchmarks._crash_task import ENDPOINTS, Asked, requests_of
from prefect_llm_tiers.core.outcomes import Billing
from prefect_llm_tiers.core.requests import derived_token, split_custom_id
from prefect_llm_tiers.engine.looks import CANCEL_POLL
from prefect_llm_tiers.ledger import schema
from prefect_llm_tiers.providers.capabilities import Dialect
from prefect_llm_tiers.simulator import anthropic_batches
from prefect_llm_tiers.simulator.account import Billed
from prefect_llm_tiers.simulator.asked import body_digest
from prefect_llm_tiers.simulator.batches import Batch as ProviderBatch
from prefect_llm_tiers.simulator.simulation import Simulation

__all__ = ["Findings", "audit"]

ACCOUNT = "org-simulated/proj_simulated"

CANCEL_ARRIVES = CANCEL_POLL + timedelta(minutes=2)
"""Within what time of its intent, or of a copy's first being seen, a cancel is at the provider: a process that dies in
between leaves it to the next look, and a call that takes a second takes two minutes at the soak's speed."""


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt as the ledger has it, with what came of it."""

    key: str
    batch_id: int | None
    began_at: datetime
    closed: str | None
    closed_at: datetime | None
    standing: str | None
    kind: str | None
    billing: str | None
    cost_usd: Decimal | None
    ended_at: datetime | None

    @property
    def listed(self) -> bool:
        """Whether the ledger lists it as something that costs, or may cost, money."""
        if self.billing is None:
            return self.closed == "abandoned"
        return self.billing in (Billing.BILLED, Billing.UNKNOWN)

    @property
    def unknown(self) -> bool:
        """Whether the ledger says that it may have been billed and does not know."""
        return self.billing == Billing.UNKNOWN or (self.billing is None and self.closed == "abandoned")

    @property
    def superseded(self) -> bool:
        """Whether it was billed and another answer stands."""
        return self.billing == Billing.BILLED and self.standing != "counts"

    def over_by(self, instant: datetime) -> bool:
        """Whether nothing more was expected of it at an instant."""
        return any(at is not None and at <= instant for at in (self.ended_at, self.closed_at))


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """One batch as the ledger has it.

    Attributes:
        waited_for: Whether a run ever waited for it: for a copy, that it carries rows which the first one did not
            answer, so that stopping it would pay for them again.
        cancel_at: When its stop was decided.
    """

    id: int
    state: str
    submission: int
    provider_batch_id: str | None
    copy_of: int | None
    waited_for: bool
    cancel_at: datetime | None
    tokens: tuple[str, ...]


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """What an audit found; the first three are to be empty.

    Attributes:
        lost_rows: Rows without exactly one outcome at the end, and answers that the provider delivered and the
            ledger does not have.
        double_submissions: Pairs of batches at the provider that carry one row, of which the later is explained
            neither by the end of the earlier one as the ledger tells it, nor as a copy that the ledger lists and
            that was stopped or had ended.
        unreconciled: Bills of the provider that no attempt in the ledger accounts for, as priced, superseded or
            `billed_unknown`.
        billed_usd: What the provider billed.
        dearest_usd: The dearest row, on average over its bills.
        counted_usd: What the answers that count have cost by the ledger.
        superseded_usd: What the others have cost by the ledger.
        settled: Rows with an answer that counts.
        unknown: Attempts that the ledger lists as `billed_unknown`.
        batches: Batches at the provider.
        nameless: Those of them that the ledger does not know and nobody can: the provider keeps no metadata, and not
            one line of the results bears the custom_id that would tell whose it is. They are left out above.
    """

    lost_rows: list[str]
    double_submissions: list[str]
    unreconciled: list[str]
    billed_usd: Decimal
    dearest_usd: Decimal
    counted_usd: Decimal
    superseded_usd: Decimal
    settled: int
    unknown: int
    batches: int
    nameless: int

    @property
    def faultless(self) -> bool:
        """Whether nothing was lost, sent twice or billed behind the ledger's back."""
        return not (self.lost_rows or self.double_submissions or self.unreconciled)


def audit(simulation: Simulation, ledger: str, asked: Asked) -> Findings:
    """Hold a provider's account against a ledger.

    Args:
        simulation: The provider; nobody else used it.
        ledger: Path or URL.
        asked: What was asked, by whatever runs.
    """
    engine = create_engine(_url(ledger))
    try:
        attempts, kept, failed = _attempts(engine), _kept(engine), _failed(engine)
    finally:
        engine.dispose()
    keys = _keys(asked)
    batches = simulation.world.every_batch()
    known = {batch.provider_batch_id for batch in kept}
    nameless = {batch.id for batch in batches if batch.id not in known and _is_nameless(simulation, batch)}
    sent = [batch for batch in batches if batch.id not in nameless]
    billed = simulation.billed()
    return Findings(
        lost_rows=list(_lost(keys.values(), attempts, failed)),
        double_submissions=list(_double(sent, attempts, kept)),
        unreconciled=list(_unreconciled(billed, keys, attempts, kept, nameless)),
        billed_usd=sum((bill.usd for bill in billed.values()), Decimal(0)),
        dearest_usd=max((bill.usd / bill.times for bill in billed.values()), default=Decimal(0)),
        counted_usd=_cost(attempt for attempt in attempts if attempt.standing == "counts"),
        superseded_usd=_cost(attempt for attempt in attempts if attempt.superseded),
        settled=len({attempt.key for attempt in attempts if attempt.standing == "counts"}),
        unknown=sum(attempt.unknown for attempt in attempts),
        batches=len(batches),
        nameless=len(nameless),
    )


def _url(ledger: str) -> str:
    if "://" not in ledger:
        return f"sqlite:///{ledger}"
    return ledger.replace("postgresql://", "postgresql+psycopg://")


def _keys(asked: Asked) -> dict[str, str]:
    """Return the key of each row by the digest under which the provider bills it."""
    requests = requests_of(asked, ACCOUNT if asked.dialect is Dialect.OPENAI else "org-simulated")
    endpoint = ENDPOINTS[asked.dialect]
    return {body_digest(endpoint, msgspec.json.decode(request.body)): request.key for request in requests}


def _attempts(engine: Engine) -> list[Attempt]:
    tried, came = schema.attempts, schema.outcomes
    query = (
        select(
            schema.requests.c.key,
            tried.c.batch_id,
            tried.c.began_at,
            tried.c.closed,
            tried.c.closed_at,
            came.c.standing,
            came.c.kind,
            came.c.billing,
            came.c.cost_usd,
            came.c.ended_at,
        )
        .select_from(
            tried.join(schema.requests, schema.requests.c.id == tried.c.request_id).outerjoin(
                came, came.c.attempt_id == tried.c.id
            )
        )
        .order_by(tried.c.id)
    )
    with engine.connect() as connection:
        rows = [dict(row._mapping) for row in connection.execute(query)]
    return [
        Attempt(**(row | {"cost_usd": None if row["cost_usd"] is None else Decimal(row["cost_usd"])})) for row in rows
    ]


def _kept(engine: Engine) -> list[Kept]:
    columns = schema.batches.c
    query = select(
        columns.id,
        columns.state,
        columns.submission,
        columns.provider_batch_id,
        columns.copy_of,
        columns.token,
        columns.cancel_at,
    ).order_by(columns.id)
    with engine.connect() as connection:
        ledger_id = connection.execute(select(schema.meta.c.ledger_id)).scalar_one()
        rows = connection.execute(query).all()
        waited_for = set(connection.execute(select(schema.attachments.c.batch_id)).scalars())
    return [
        Kept(
            id=row.id,
            state=row.state,
            submission=row.submission,
            provider_batch_id=row.provider_batch_id,
            copy_of=row.copy_of,
            waited_for=row.id in waited_for,
            cancel_at=row.cancel_at,
            tokens=(row.token,)
            if row.copy_of is not None
            else tuple(derived_token(ledger_id, "batch", row.id, number) for number in range(1, row.submission + 1)),
        )
        for row in rows
    ]


def _cost(attempts: Iterable[Attempt]) -> Decimal:
    return sum((attempt.cost_usd for attempt in attempts if attempt.cost_usd is not None), Decimal(0))


def _failed(engine: Engine) -> set[str]:
    """Return the keys of the rows that failed for some run, with a reason."""
    query = (
        select(schema.requests.c.key)
        .join(schema.setbacks, schema.setbacks.c.request_id == schema.requests.c.id)
        .where(schema.setbacks.c.reason.is_not(None))
    )
    with engine.connect() as connection:
        return set(connection.execute(query).scalars())


def _lost(keys: Iterable[str], attempts: Sequence[Attempt], failed: set[str]) -> Iterable[str]:
    counting = Counter(attempt.key for attempt in attempts if attempt.standing == "counts")
    for key in keys:
        if counting[key] > 1 or (not counting[key] and key not in failed):
            yield f"row {key[:8]} has {counting[key]} outcomes that count"


def _double(sent: Sequence[ProviderBatch], attempts: Sequence[Attempt], kept: Sequence[Kept]) -> Iterable[str]:
    """Tell of each pair of batches that carry a row, the later one without a reason."""
    tried = {(attempt.batch_id, attempt.key): attempt for attempt in attempts}
    by_provider = {batch.provider_batch_id: batch for batch in kept if batch.provider_batch_id}
    carrying: dict[str, list[ProviderBatch]] = defaultdict(list)
    # One that failed its validation carries nothing: none of its rows was or will be worked on.
    for batch in sorted(sent, key=lambda batch: batch.created_at):
        for row in batch.rows:
            parts = split_custom_id(row.custom_id)
            if parts is None:
                yield f"{batch.id} bears the custom_id {row.custom_id!r}, which no ledger made"
                break
            carrying[parts[0]].append(batch)
    told: set[tuple[str, str]] = set()
    for key, batches in carrying.items():
        for number, later in enumerate(batches):
            for earlier in batches[:number]:
                pair = (earlier.id, later.id)
                if pair in told:
                    continue
                reason = _unexplained(earlier, later, by_provider, tried, key)
                if reason:
                    told.add(pair)
                    yield f"{later.id} carries row {key[:8]} after {earlier.id}: {reason}"


def _unexplained(
    earlier: ProviderBatch,
    later: ProviderBatch,
    by_provider: dict[str, Kept],
    tried: dict[tuple[int | None, str], Attempt],
    key: str,
) -> str | None:
    """Return why a later batch with a row of an earlier one should not be; None where it may."""
    first, second = by_provider.get(earlier.id), by_provider.get(later.id)
    if first is None or second is None:
        return f"the ledger knows nothing of {earlier.id if first is None else later.id}"
    copies = [(sent, listed) for sent, listed in ((earlier, first), (later, second)) if listed.copy_of is not None]
    for copy, listed in copies:
        # The provider made it itself, or took one submission so late that it was proven absent by then.
        seen = tried.get((listed.id, key))
        if seen is None:
            return f"{copy.id} is a copy without an attempt on the row"
        heard_by = (listed.cancel_at or seen.began_at) + CANCEL_ARRIVES
        if not (listed.waited_for or _stopped(copy) or _over_by(copy, heard_by)):
            return f"{copy.id} is a copy: no run waits for it, and it was neither stopped nor over before it could be"
    if copies:
        # What the ledger sent itself is held against the batch that this is a copy of.
        return None
    before, after = tried.get((first.id, key)), tried.get((second.id, key))
    if before is None or after is None:
        return "the ledger has no attempt for one of them"
    if not before.over_by(after.began_at):
        return f"the ledger sent it again at {after.began_at} while the first was out (batches {first.id}, {second.id})"
    return None


def _is_nameless(simulation: Simulation, batch: ProviderBatch) -> bool:
    """Return whether nothing that the provider will ever tell of a batch says whose it is."""
    if batch.dialect != Dialect.ANTHROPIC or not batch.rows:
        return False
    results = b"".join(anthropic_batches.result_lines(simulation.world, batch))
    return not any(row.custom_id.encode() in results for row in batch.rows)


def _stopped(batch: ProviderBatch) -> bool:
    """Return whether a batch's cancel was asked for, or nothing was ever to be stopped."""
    return batch.life is None or batch.life.cancel_at is not None


def _over_by(batch: ProviderBatch, instant: datetime) -> bool:
    """Return whether a batch had ended at an instant, so that there was nothing to stop any more."""
    return batch.life is None or batch.life.end[0] <= instant


def _unreconciled(
    billed: dict[str, Billed],
    keys: dict[str, str],
    attempts: Sequence[Attempt],
    kept: Sequence[Kept],
    nameless: set[str],
) -> Iterable[str]:
    by_provider = {batch.provider_batch_id: batch.id for batch in kept if batch.provider_batch_id}
    listed = Counter((attempt.batch_id, attempt.key) for attempt in attempts if attempt.listed)
    for digest, bill in billed.items():
        key = keys.get(digest)
        if key is None:
            yield f"{bill.times} bills for a body that nobody asked ({digest[:8]})"
            continue
        for where, times in Counter(bill.where).items():
            if where in nameless:
                continue
            batch_id = None if where == "live" else by_provider.get(where)
            if where != "live" and batch_id is None:
                yield f"row {key[:8]} is billed in {where}, which the ledger does not know"
            elif listed[batch_id, key] < times:
                yield f"row {key[:8]} is billed {times} times in {where}, and the ledger lists {listed[batch_id, key]}"
