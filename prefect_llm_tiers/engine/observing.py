"""What a visit to a live tier tells of its latency."""

from datetime import datetime, timedelta

from prefect_llm_tiers.core.observations import ObservedLane
from prefect_llm_tiers.core.outcomes import Outcome
from prefect_llm_tiers.core.ports import Clock
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.engine.throttle import Circuit
from prefect_llm_tiers.planning.priors import LiveRate

__all__ = ["Observing"]


class Observing:
    """Counts along while a lane asks.

    Args:
        clock: Time; the visit begins now.
        rate: How fast the account may go.
        circuit: Knows when the tier took no calls; None for a tier that does not refuse.
    """

    def __init__(self, clock: Clock, *, rate: LiveRate, circuit: Circuit | None) -> None:
        self._clock = clock
        self._began_at = clock.now()
        self._rate = rate
        self._circuit = circuit
        self._sent = 0
        self._replies = 0
        self._latency = timedelta(0)
        self._input_tokens = 0
        self._output_tokens = 0

    def sent(self) -> datetime:
        """Note that a call goes out, and return when."""
        self._sent += 1
        return self._clock.now()

    def replied(self, sent_at: datetime, outcome: Outcome) -> None:
        """Note its reply, whatever is in it."""
        self._replies += 1
        self._latency += self._clock.now() - sent_at
        if outcome.usage is not None:
            self._input_tokens += outcome.usage.input_tokens
            self._output_tokens += outcome.usage.output_tokens

    def seen(self, step: str, model: str, tier: Tier, *, settled: int) -> ObservedLane | None:
        """Return what was seen of a tier and `settled` requests by now; None where no call was sent."""
        if not self._sent:
            return None
        now, replies = self._clock.now(), max(self._replies, 1)
        down = self._circuit.down(now) if self._circuit is not None else timedelta(0)
        tokens = (self._input_tokens + self._output_tokens) / replies
        return ObservedLane(
            step=step,
            tier=tier,
            model=model,
            began_at=self._began_at,
            requests=settled,
            busy=now - self._began_at - down,
            concurrency=self._rate.concurrency,
            spacing=timedelta(seconds=self._rate.spacing_s(tokens)),
            latency=self._latency / replies,
            output_tokens=self._output_tokens / replies,
            found_down=self._circuit is not None and self._circuit.found_down(now),
            down=down,
            recoveries=self._circuit.recoveries if self._circuit is not None else 0,
        )
