"""The live lane: priority, standard and flex, one call a request.

What an unsuccessful reply means decides what follows: a full provider opens the flex circuit, the account's
own limit cuts the throttle, an exhausted quota or a rejected key stops the lane, and a row's own fault fails
that row. Waiting is bounded by the deadline, not by a count.
"""

import asyncio
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from typing import assert_never

import msgspec

from prefect_llm_tiers.core.outcomes import Billing, Outcome, OutcomeKind
from prefect_llm_tiers.core.ports import CallFailed, FailureMeaning
from prefect_llm_tiers.core.requests import Request
from prefect_llm_tiers.core.runs import Lease, StepRun
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.crash_points import crash_point
from prefect_llm_tiers.engine.failures import LOST
from prefect_llm_tiers.engine.job import Job, Ports
from prefect_llm_tiers.engine.journal import Journal
from prefect_llm_tiers.engine.observing import Observing
from prefect_llm_tiers.engine.pricing import priced
from prefect_llm_tiers.engine.throttle import Circuit, Throttle
from prefect_llm_tiers.engine.visit import Dropped, Visit
from prefect_llm_tiers.errors import LLMTiersError, QuotaExhausted, RequestRejected

__all__ = ["LaneReport", "LiveLane"]

MOST_LOST_CALLS = 8
"""How often one row's call may be lost (connection, timeout, server error) before the row fails, where it is
the row: other calls come back, or the provider does without taking this one."""

OUTAGE = timedelta(hours=1)
"""How long a provider that answers nothing is taken to be down without asking whether it is there at all."""

_FIRST_BACKOFF_S = 0.5
_LONGEST_BACKOFF_S = 120.0


class LaneReport(msgspec.Struct, frozen=True):
    """How a visit to the lane ended.

    Attributes:
        settled: Requests that got an outcome that counts.
        tier_unsupported: The provider does not offer the tier for this model after all.
    """

    settled: int
    tier_unsupported: bool


class _TakenElsewhere(Exception):
    """The row was answered since it was looked at, or another run pays for it now: it is looked at again."""


class _Attempt:
    """One attempt on a row while it is made.

    Attributes:
        id: Its number in the ledger; None before it was begun.
        refusal: Why its last call was refused, free of charge.
    """

    id: int | None = None
    refusal: str = "stopped"


class LiveLane:
    """Carries open requests through one live tier until they are done or the tier is to be left.

    Args:
        job: The step run.
        ports: The outside world.
        run: The step run as the ledger holds it.
        tier: The tier to ask in.
        lease: The step run's.
        throttle: How many calls may be in flight, and how fast they may start.
        until: When no more calls are sent; None: when all have been.
        cut_at: When calls in flight are cut, not before `until`.
        not_before: How old an answer may be to count.
        share: Whether a row that another run has a call out on is left to that run.
        settled: Told of each outcome: how many there are, and what they cost.
    """

    def __init__(
        self,
        job: Job,
        ports: Ports,
        *,
        run: StepRun,
        tier: Tier,
        lease: Lease,
        throttle: Throttle,
        until: datetime | None,
        cut_at: datetime | None,
        not_before: datetime,
        share: bool,
        settled: Callable[[int, Decimal], None],
    ) -> None:
        self._job = job
        self._ports = ports
        self._tier = tier
        self._visit = Visit(ports.clock, until=until, cut_at=cut_at)
        self._journal = Journal(
            ports.ledger, ports.clock, run=run, tier=tier, lease=lease, not_before=not_before, share=share
        )
        self._throttle = throttle
        self._circuit = Circuit(ports.clock) if tier is Tier.FLEX else None
        self._observing = Observing(ports.clock, rate=job.rate, circuit=self._circuit)
        self._answered_at: datetime | None = None
        self._settled = 0
        self._spent = Decimal(0)
        self._tell = settled

    async def run(self, positions: Iterator[int]) -> LaneReport:
        """Ask the requests at some positions, each until it has an outcome or the tier is to be left.

        Raises:
            QuotaExhausted: Nothing more will be answered.
            CredentialsRejected: The key was refused.
            LeaseLost: Another process decides now; what was in flight is written down first.
        """
        workers = [asyncio.create_task(self._work(positions)) for _ in range(max(1, self._job.rate.concurrency))]
        try:
            # A worker ends early only by an error of ours, as a ledger that cannot be written.
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            await self._journal.flush()
        if not self._visit.unsupported:
            self._observe()
        if self._visit.fatal is not None:
            raise self._visit.fatal
        return LaneReport(settled=self._settled, tier_unsupported=self._visit.unsupported)

    async def _work(self, positions: Iterator[int]) -> None:
        while not self._visit.over:
            position = next(positions, None)
            if position is None:
                return
            try:
                await self._settle(self._job.spool.read(position))
            except _TakenElsewhere:
                continue
            except Dropped:
                return
            except LLMTiersError as error:
                self._visit.end(error)
                return

    async def _settle(self, request: Request) -> None:
        """Ask one request until something came back. Raises `Dropped` if the tier is left first."""
        lost = beside_answers = 0
        since = last = self._ports.clock.now()
        while True:
            outcome = await self._attempt(request)
            if outcome.kind is not OutcomeKind.RETRY:
                self._settled += 1
                self._tell(self._settled, self._spent)
                return
            if outcome.counted:
                # The ledger counts the tries, over processes; the runner asks again or fails the row.
                return
            lost += 1
            # In an outage nothing comes back; it is waited out, and fails no row.
            beside_answers += self._answered_at is not None and self._answered_at > last
            last = self._ports.clock.now()
            if beside_answers >= MOST_LOST_CALLS or (lost >= MOST_LOST_CALLS and await self._is_up(since)):
                await self._give_up(request, outcome)
                return
            await self._back_off(lost, None)

    async def _is_up(self, since: datetime) -> bool:
        """Return whether the provider is there all the same, for a row that nobody answered for an hour."""
        if self._ports.clock.now() < since + OUTAGE:
            return False
        try:
            await self._ports.provider.identify(self._job.model)
        except CallFailed:
            return False
        return True

    async def _attempt(self, request: Request) -> Outcome:
        """Send one call and write down what came of it.

        A refusal that costs nothing leaves the attempt open and the call is made again under it; only a
        call that may be billed ends an attempt.
        """
        attempt = _Attempt()
        try:
            outcome = self._judged(await self._ask(request, attempt))
        except (Dropped, LLMTiersError):
            # What was sent under it so far was refused and costs nothing; left open, it would be listed as if.
            await self._record(attempt, _retry(request.key, attempt.refusal, Billing.UNBILLED))
            raise
        await self._record(attempt, outcome)
        crash_point("live.recorded")
        self._spent += outcome.cost_usd or Decimal(0)
        return outcome

    async def _ask(self, request: Request, attempt: "_Attempt") -> Outcome:
        refusals = 0
        while True:
            probes = await self._admitted()
            try:
                if attempt.id is None:
                    # A crash between this commit and the reply leaves an open attempt: billed_unknown.
                    attempt.id = await self._begin(request, probes=probes)
                outcome = await self._call(request)
                crash_point("live.answered")
            except CallFailed as failure:
                meaning = failure.meaning
            else:
                self._throttle.succeeded()
                self._answered_at = self._ports.clock.now()
                if self._circuit is not None:
                    self._circuit.answered()
                return outcome
            finally:
                self._throttle.release()
            ended = self._understand(meaning)
            if ended is not None:
                return msgspec.structs.replace(ended, key=request.key)
            attempt.refusal = meaning.reason
            if meaning.maybe_billed:
                # A gateway refused and cannot know what the provider did: the next call is another attempt.
                await self._record(attempt, _retry(request.key, meaning.reason, Billing.UNKNOWN))
                attempt.id = None
            if self._visit.over:
                raise Dropped
            refusals += 1
            if meaning.kind == "capacity" and self._circuit is None:
                await self._back_off(refusals, meaning.retry_after_s)

    async def _begin(self, request: Request, *, probes: bool) -> int:
        """Commit that a call is about to be sent. Raises `_TakenElsewhere` where it must not be."""
        attempt = await self._journal.begin(request.key)
        if attempt is None:
            self._throttle.unused()
            if self._circuit is not None and probes:
                # All others wait for what this call would have found.
                self._circuit.unused()
            raise _TakenElsewhere
        crash_point("live.intended")
        return attempt

    async def _admitted(self) -> bool:
        """Return when a call may be sent; True for a circuit's probe. Raises `Dropped` if the tier is left first."""
        probes = self._circuit is not None and await self._visit.bounded(self._circuit.enter())
        await self._visit.bounded(self._throttle.acquire())
        if self._visit.over:
            self._throttle.release()
            raise Dropped
        return probes

    async def _call(self, request: Request) -> Outcome:
        capabilities = self._job.capabilities
        limit = capabilities.flex_timeout if self._tier is Tier.FLEX else capabilities.live_timeout
        timeout_s = self._visit.call_s(limit)
        began = self._observing.sent()
        try:
            async with asyncio.timeout(timeout_s):
                outcome = await self._ports.provider.call(
                    request, endpoint=self._job.endpoint, tier=self._tier, timeout_s=timeout_s
                )
        except TimeoutError:
            meaning = FailureMeaning(kind="timeout", reason="timeout", maybe_billed=True)
            raise CallFailed(meaning) from None
        self._observing.replied(began, outcome)
        return outcome

    def _understand(self, meaning: FailureMeaning) -> Outcome | None:
        """Draw the consequences of a failed call; return the outcome of its attempt, if it ends it.

        None means that the same request may be sent again, unless the lane is being left.
        """
        if self._circuit is not None:
            match meaning.kind:
                case "capacity":
                    self._circuit.refused()
                case "timeout":
                    self._circuit.refused(stalled=True)
                case _:
                    # Any other reply shows that the tier takes calls.
                    self._circuit.answered()
        match meaning.kind:
            case "capacity":
                return None
            case "rate_limit":
                self._throttle.limited(retry_after_s=meaning.retry_after_s)
                return None
            case "quota":
                self._visit.end(
                    QuotaExhausted(
                        f"The account behind step {self._job.step!r} has no credit left ({meaning.reason}). "
                        "Answers that came back are kept. Add credit, then run the flow again."
                    )
                )
                return None
            case "tier_unsupported":
                self._visit.end(None)
                return None
            case "auth":
                self._visit.end(
                    RequestRejected(
                        f"The provider refuses calls of step {self._job.step!r} ({meaning.reason}). Answers that "
                        "came back are kept. Check the rights of the key, then run the flow again."
                    )
                )
                return None
            case "rejected":
                return Outcome(key="", kind=OutcomeKind.FAILURE, reason=meaning.reason)
            case "timeout" | "connection" | "server":
                billing = Billing.UNKNOWN if meaning.maybe_billed else Billing.UNBILLED
                return _retry("", meaning.reason, billing)
            case unknown:
                msg = f"The provider adapter reported a failure of unknown kind {unknown!r}."
                raise AssertionError(msg)

    async def _back_off(self, times: int, retry_after_s: float | None) -> None:
        ceiling = min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2 ** min(times, 10))
        await self._visit.pause(retry_after_s or self._ports.chance.uniform(ceiling / 2, ceiling))

    async def _give_up(self, request: Request, last: Outcome) -> None:
        attempt = _Attempt()
        attempt.id = await self._journal.begin(request.key)
        reason = f"{LOST}{last.reason}"
        await self._record(attempt, Outcome(key=request.key, kind=OutcomeKind.FAILURE, reason=reason))

    def _judged(self, outcome: Outcome) -> Outcome:
        """Return the outcome as the step sees it: an answer that does not parse is asked again."""
        outcome = priced(
            outcome,
            provider=self._ports.provider.name,
            model=self._job.model,
            tier_asked=self._tier,
            at=self._ports.clock.now(),
        )
        match outcome.kind:
            case OutcomeKind.ANSWER:
                reason = self._job.accept(outcome.text or "")
                if reason is None:
                    return outcome
                return msgspec.structs.replace(outcome, kind=OutcomeKind.RETRY, reason=reason, counted=True)
            case OutcomeKind.RETRY if outcome.billing is not Billing.BILLED:
                # A reply that cannot be read is a lost call, and says nothing about the row.
                return msgspec.structs.replace(outcome, counted=False)
            case OutcomeKind.REFUSAL | OutcomeKind.FAILURE | OutcomeKind.RETRY:
                return outcome
            case _:
                assert_never(outcome.kind)

    async def _record(self, attempt: "_Attempt", outcome: Outcome) -> None:
        if attempt.id is not None:
            await self._journal.record(attempt.id, outcome)

    def _observe(self) -> None:
        seen = self._observing.seen(self._job.step, self._job.model, self._tier, settled=self._settled)
        if seen is not None:
            self._ports.ledger.observe_lane(seen, step_run_id=self._job.id)


def _retry(key: str, reason: str, billing: Billing) -> Outcome:
    return Outcome(key=key, kind=OutcomeKind.RETRY, reason=reason, billing=billing, counted=False)
