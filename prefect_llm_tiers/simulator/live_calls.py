"""Live calls as the world answers them: limits, capacity, faults, latency."""

import threading
from collections import Counter
from datetime import datetime, timedelta

import msgspec

from prefect_llm_tiers.core.ports import Clock
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.simulator.account import Books
from prefect_llm_tiers.simulator.answers import Answering, Composed, compose
from prefect_llm_tiers.simulator.asked import AskedRequest, draw
from prefect_llm_tiers.simulator.draws import Draws
from prefect_llm_tiers.simulator.limits import FlexWeather, Meter, Reading
from prefect_llm_tiers.simulator.settings import WorldSettings

__all__ = ["CapacityRefused", "Limited", "LiveCalls", "ProviderFailed", "Served", "Struck"]

_UNBILLED = ("live_limited", "live_quota", "live_capacity", "live_529", "live_498", "live_5xx")
_BILLED = ("live_stalls", "live_reset", "live_502_billed", "live_malformed")


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """A live answer, with the limits it met."""

    composed: Composed
    requests: Reading | None
    tokens: Reading | None


class Limited(Exception):
    """The account's own limit; `unit` is `requests` or `tokens`."""

    def __init__(self, unit: str, reading: Reading) -> None:
        super().__init__(unit, reading)
        self.unit = unit
        self.reading = reading


class CapacityRefused(Exception):
    """Flex has no room now."""


class ProviderFailed(Exception):
    """The provider broke, and bills nothing."""


class Struck(Exception):
    """A fault of this name struck a live call.

    Attributes:
        fault: Its name.
        key: What its further draws are keyed by.
        reply: The answer that was billed and is lost or spoiled on its way; None where nothing was billed.
    """

    def __init__(self, fault: str, key: str, reply: Composed | None = None) -> None:
        super().__init__(fault)
        self.fault = fault
        self.key = key
        self.reply = reply


class LiveCalls:
    """The live side of a world, which shares its lock, its books and its draws.

    Args:
        settings: What the world is like.
        clock: Its time.
        lock: Guards everything of the world.
        books: Its account.
        draws: Its faults.
        asks: How often each body was asked, in whichever lane.
        answering: A user's own model instead of the built-in one.
    """

    def __init__(
        self,
        settings: WorldSettings,
        clock: Clock,
        *,
        lock: threading.RLock,
        books: Books,
        draws: Draws,
        asks: Counter[str],
        answering: Answering | None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = lock
        self._books = books
        self._draws = draws
        self._asks = asks
        self._answering = answering
        self._weather = FlexWeather(settings.flex_outages, clock.now(), draw(settings.seed, "flex"))
        self._meters: dict[tuple[str, str, str], Meter] = {}

    async def ask(self, asked: AskedRequest) -> Served:
        """Answer a live call after its latency.

        The work is billed as soon as it is taken, so that a client that hangs up has paid all the same.

        Raises:
            Limited: The account's own limit is reached; unbilled.
            CapacityRefused: Flex has no room; unbilled.
            ProviderFailed: A 500; unbilled.
            Struck: A fault by name.
        """
        with self._lock:
            now = self._clock.now()
            self._books.ask(asked)
            requests = self._take(asked, now)
            if asked.tier is Tier.FLEX and not self._weather.is_up(now):
                self._books.capacity_refused += 1
                raise CapacityRefused
            number = self._asks[asked.digest]
            self._asks[asked.digest] += 1
            if self._draws.strikes("error_rate", asked.digest, number):
                self._books.errors += 1
                raise ProviderFailed
            call = f"{asked.digest}:{number}"
            if fault := self._unbilled_fault(asked, call):
                raise Struck(fault, call)
            composed = compose(asked, self._settings, self._draws, first=number == 0, answering=self._answering)
            self._books.bill(asked, composed, where="live")
            fault = self._draws.first_of(_BILLED, call)
            latency = self._latency(asked, composed, number)
        await self._clock.sleep_until(now + latency)
        if fault:
            raise Struck(fault, call, composed)
        return Served(composed=composed, requests=requests.get("requests"), tokens=requests.get("tokens"))

    def _unbilled_fault(self, asked: AskedRequest, call: str) -> str | None:
        """Return the fault that keeps a call from being answered and billed; the lock is held."""
        if not self._draws.any_of(*_UNBILLED):
            return None
        elsewhere = {"live_capacity"} if asked.tier is not Tier.FLEX else set()
        if asked.dialect != "openai":
            elsewhere.add("live_498")
        fault = self._draws.first_of(tuple(name for name in _UNBILLED if name not in elsewhere), call)
        self._books.rate_limited += fault == "live_limited"
        self._books.capacity_refused += fault in ("live_capacity", "live_498", "live_529")
        self._books.errors += fault == "live_5xx"
        return fault

    def _take(self, asked: AskedRequest, now: datetime) -> dict[str, Reading]:
        """Take a request from its limits, all of them or none."""
        limits = {"requests": self._settings.requests_per_minute, "tokens": self._settings.tokens_per_minute}
        units = {"requests": 1, "tokens": asked.input_tokens + (asked.max_output_tokens or 0)}
        readings: dict[str, Reading] = {}
        for unit, limit in limits.items():
            if limit is None:
                continue
            meter = self._meters.setdefault((asked.dialect, asked.model, unit), Meter(limit, now))
            readings[unit] = meter.look(units[unit], now)
        for unit, reading in readings.items():
            if reading.retry_after_s > 0:
                self._books.rate_limited += 1
                raise Limited(unit, reading)
        for unit in readings:
            self._meters[asked.dialect, asked.model, unit].take(units[unit])
        return readings

    def _latency(self, asked: AskedRequest, composed: Composed, number: int) -> timedelta:
        law = self._settings.live_law(asked.tier)
        random = draw(self._settings.seed, "latency", asked.tier, asked.digest, number)
        factor = random.lognormvariate(0.0, law.sigma) if law.sigma > 0 else 1.0
        return timedelta(seconds=(law.base_s + law.per_token_s * composed.output_tokens) * factor)
