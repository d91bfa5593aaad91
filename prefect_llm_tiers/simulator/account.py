"""What the simulated provider was asked, what it did, and what it would have billed."""

from collections import Counter
from datetime import datetime
from decimal import Decimal

import msgspec

from prefect_llm_tiers.core.tiers import LIVE_TIERS, Tier
from prefect_llm_tiers.simulator.answers import Composed
from prefect_llm_tiers.simulator.asked import AskedRequest
from prefect_llm_tiers.simulator.book import MODELS, bill_usd

__all__ = ["Account", "AccountLine", "Billed", "Books"]


class AccountLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the account.

    Attributes:
        dialect: `openai` or `anthropic`.
        model: The model asked.
        tier: The tier served.
        lane: `batch` or `live`.
        asked: Valid requests taken, refused ones (429, 500) among them.
        answered: Requests that were answered, refusals of the model among them: all of these are billed.
        input_tokens: All input billed, cached included.
        cached_input_tokens: The part of it read from the cache.
        output_tokens: All output billed.
        billed_usd: What it comes to.
    """

    dialect: str
    model: str
    tier: Tier
    lane: str
    asked: int = 0
    answered: int = 0
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    billed_usd: Decimal = Decimal(0)


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """The account at an instant; amounts are decimal strings in JSON.

    Attributes:
        at: The simulated instant.
        asked: See `AccountLine`; so are the next five.
        lines: The same, by dialect, model, tier and lane.
        asked_more_than_once: Distinct bodies (endpoint and body without tier) that were billed twice or
            more, in whichever lanes.
        batches_created: Batches accepted, those that failed their validation among them.
        batches_cancelled: Batches whose cancel was accepted.
        files_uploaded: Files taken.
        refusals: Answers in which the model declined.
        rate_limited: Live calls refused by the account's own limit.
        capacity_refused: Flex calls refused for want of capacity.
        errors: Live calls and batch rows that ended in the provider's own error.
        models_calls: Look-ups of models.
        billed_again: Billings beyond a body's first, summed over all bodies.
        faults: How often each fault struck, by name; those that never did are absent.
    """

    at: datetime
    asked: int
    answered: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    billed_usd: Decimal
    lines: tuple[AccountLine, ...]
    asked_more_than_once: int
    batches_created: int
    batches_cancelled: int
    files_uploaded: int
    refusals: int
    rate_limited: int
    capacity_refused: int
    errors: int
    models_calls: int
    billed_again: int = 0
    faults: dict[str, int] = {}


class Billed(msgspec.Struct, frozen=True, kw_only=True):
    """What was billed for one body; `asked.body_digest` names bodies.

    Attributes:
        digest: Names endpoint and body, apart from the tier.
        times: How often it was billed.
        usd: What these billings come to.
        where: The id of the batch of each billing, or `live`.
    """

    digest: str
    times: int
    usd: Decimal
    where: tuple[str, ...]


class _Bill(msgspec.Struct, gc=False):
    usd: Decimal
    where: tuple[str, ...]


class _Tally:
    __slots__ = ("answered", "asked", "billed_usd", "cached", "input", "output")

    def __init__(self) -> None:
        self.asked = self.answered = self.input = self.cached = self.output = 0
        self.billed_usd = Decimal(0)


class Books:
    """The running account; the world's lock guards it."""

    def __init__(self, struck: Counter[str]) -> None:
        self._struck = struck
        self.batches_created = 0
        self.batches_cancelled = 0
        self.files_uploaded = 0
        self.refusals = 0
        self.rate_limited = 0
        self.capacity_refused = 0
        self.errors = 0
        self.models_calls = 0
        self._tallies: dict[tuple[str, str, Tier, str], _Tally] = {}
        self._bills: dict[str, _Bill] = {}

    def ask(self, asked: AskedRequest) -> None:
        """Count a valid request."""
        self._tally(asked).asked += 1

    def bill(self, asked: AskedRequest, composed: Composed, *, where: str) -> None:
        """Bill an answer that was given live, or in the batch of this id."""
        tally = self._tally(asked)
        tally.answered += 1
        tally.input += composed.input_tokens
        tally.cached += composed.cached_tokens
        tally.output += composed.output_tokens
        usd = bill_usd(
            MODELS[asked.model],
            asked.tier,
            input_tokens=composed.input_tokens,
            cached_tokens=composed.cached_tokens,
            output_tokens=composed.output_tokens,
            image_tokens=asked.image_tokens,
            seconds=asked.seconds,
        )
        tally.billed_usd += usd
        bill = self._bills.get(asked.digest)
        if bill is None:
            self._bills[asked.digest] = _Bill(usd, (where,))
        else:
            bill.usd += usd
            bill.where += (where,)
        self.refusals += composed.refused

    def _tally(self, asked: AskedRequest) -> _Tally:
        lane = "live" if asked.tier in LIVE_TIERS else "batch"
        key = (asked.dialect, asked.model, asked.tier, lane)
        return self._tallies.setdefault(key, _Tally())

    def account(self, at: datetime) -> Account:
        """Return the account as it stands."""
        lines = tuple(
            AccountLine(
                dialect=dialect,
                model=model,
                tier=tier,
                lane=lane,
                asked=tally.asked,
                answered=tally.answered,
                input_tokens=tally.input,
                cached_input_tokens=tally.cached,
                output_tokens=tally.output,
                billed_usd=tally.billed_usd,
            )
            for (dialect, model, tier, lane), tally in sorted(self._tallies.items())
        )
        return Account(
            at=at,
            asked=sum(line.asked for line in lines),
            answered=sum(line.answered for line in lines),
            input_tokens=sum(line.input_tokens for line in lines),
            cached_input_tokens=sum(line.cached_input_tokens for line in lines),
            output_tokens=sum(line.output_tokens for line in lines),
            billed_usd=sum((line.billed_usd for line in lines), Decimal(0)),
            lines=lines,
            asked_more_than_once=sum(len(bill.where) > 1 for bill in self._bills.values()),
            batches_created=self.batches_created,
            batches_cancelled=self.batches_cancelled,
            files_uploaded=self.files_uploaded,
            refusals=self.refusals,
            rate_limited=self.rate_limited,
            capacity_refused=self.capacity_refused,
            errors=self.errors,
            models_calls=self.models_calls,
            billed_again=sum(len(bill.where) - 1 for bill in self._bills.values()),
            faults={name: times for name, times in sorted(self._struck.items()) if times},
        )

    def billed(self) -> dict[str, Billed]:
        """Return what was billed, by the digest of the body."""
        return {
            digest: Billed(digest=digest, times=len(bill.where), usd=bill.usd, where=bill.where)
            for digest, bill in self._bills.items()
        }
