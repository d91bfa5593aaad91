"""The seeded world behind both dialects: it answers, lets batches live, and keeps the account."""

import hashlib
import threading
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from prefect_llm_tiers.core.ports import Clock
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.simulator.account import Account, Books
from prefect_llm_tiers.simulator.answers import Answering, Composed, compose
from prefect_llm_tiers.simulator.asked import AskedRequest, draw
from prefect_llm_tiers.simulator.book import Model, find_model
from prefect_llm_tiers.simulator.faults import Faults
from prefect_llm_tiers.simulator.limits import FlexWeather, Meter, Reading
from prefect_llm_tiers.simulator.lives import BatchLife, draw_duration_s, draw_progress
from prefect_llm_tiers.simulator.settings import WorldSettings

__all__ = ["Batch", "CapacityRefused", "Limited", "ProviderFailed", "Row", "Served", "World"]


class Row(msgspec.Struct, gc=False):
    """One request of a batch.

    Attributes:
        custom_id: The sender's name for it.
        asked: The question; None for a row whose body is invalid.
        first: Whether its body was new to the world when the batch came.
        rejection: Status and body that an invalid row ends in.
        composed: The answer, once it is done.
        failed: It ended in the provider's own error.
        done: It was worked on; everything else about it is final.
    """

    custom_id: str
    asked: AskedRequest | None = None
    first: bool = False
    rejection: tuple[int, dict[str, Any]] | None = None
    composed: Composed | None = None
    failed: bool = False
    done: bool = False


class Batch(msgspec.Struct, kw_only=True):
    """A batch that a dialect submitted.

    Attributes:
        id: Its id on the wire.
        dialect: Whose it is.
        key: What its draws are keyed by: dialect, model, and its number among those.
        model: The model of its first row.
        life: When it does what; None for one that failed its validation.
        rows: In the order in which they get done.
        worked: How many of them have been worked on and billed.
        sheet: What the dialect wants to remember of it.
    """

    id: str
    dialect: str
    key: str
    model: str
    created_at: datetime
    life: BatchLife | None
    rows: list[Row]
    worked: int = 0
    completed: int = 0
    failed: int = 0
    sheet: dict[str, Any] = msgspec.field(default_factory=dict)


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


class World:
    """One provider's inside. Every method may be called from several threads.

    Args:
        settings: What the world is like.
        clock: Its time.
        answering: A user's own model instead of the built-in one.
    """

    def __init__(self, settings: WorldSettings, clock: Clock, answering: Answering | None = None) -> None:
        self.settings = settings
        self.clock = clock
        self.lock = threading.RLock()
        self.books = Books()
        self.origin = clock.now()
        self._answering = answering
        self._faults = Faults(settings)
        self._weather = FlexWeather(settings.flex_outages, self.origin, draw(settings.seed, "flex"))
        self._meters: dict[tuple[str, str, str], Meter] = {}
        self._asks: Counter[str] = Counter()
        self._numbers: Counter[str] = Counter()
        self._batches: dict[str, Batch] = {}

    def new_id(self, prefix: str) -> str:
        """Return the next id of a kind: the same in every run of one world, and another's in none."""
        with self.lock:
            number = self._numbers[prefix]
            self._numbers[prefix] += 1
        return self.id_of(prefix, number)

    def id_of(self, prefix: str, *key: object) -> str:
        """Return the id that follows from a key, so that a result file reads the same every time."""
        name = f"{self.settings.seed}:{self.origin.isoformat()}:{prefix}:{':'.join(map(str, key))}"
        return prefix + hashlib.sha256(name.encode()).hexdigest()[:32]

    def model(self, dialect: str, name: object) -> Model | None:
        """Return a model that a dialect offers now."""
        return find_model(dialect, name, alive_at=self.clock.now() if self.settings.enforce_shutdown else None)

    # Live

    async def ask(self, asked: AskedRequest) -> Served:
        """Answer a live call after its latency.

        The work is billed as soon as it is taken, so that a client that hangs up has paid all the same.

        Raises:
            Limited: The account's own limit is reached; unbilled.
            CapacityRefused: Flex has no room; unbilled.
            ProviderFailed: A 500; unbilled.
        """
        with self.lock:
            now = self.clock.now()
            self.books.ask(asked)
            requests = self._take(asked, now)
            if asked.tier is Tier.FLEX and not self._weather.is_up(now):
                self.books.capacity_refused += 1
                raise CapacityRefused
            number = self._asks[asked.digest]
            self._asks[asked.digest] += 1
            if self._faults.live_error(asked.digest, number):
                self.books.errors += 1
                raise ProviderFailed
            composed = compose(asked, self.settings, self._faults, first=number == 0, answering=self._answering)
            self.books.bill(asked, composed)
            latency = self._latency(asked, composed, number)
        await self.clock.sleep_until(now + latency)
        return Served(composed=composed, requests=requests.get("requests"), tokens=requests.get("tokens"))

    def _take(self, asked: AskedRequest, now: datetime) -> dict[str, Reading]:
        """Take a request from its limits, all of them or none."""
        limits = {"requests": self.settings.requests_per_minute, "tokens": self.settings.tokens_per_minute}
        units = {"requests": 1, "tokens": asked.input_tokens + (asked.max_output_tokens or 0)}
        readings: dict[str, Reading] = {}
        for unit, limit in limits.items():
            if limit is None:
                continue
            meter = self._meters.setdefault((asked.dialect, asked.model, unit), Meter(limit, now))
            readings[unit] = meter.look(units[unit], now)
        for unit, reading in readings.items():
            if reading.retry_after_s > 0:
                self.books.rate_limited += 1
                raise Limited(unit, reading)
        for unit in readings:
            self._meters[asked.dialect, asked.model, unit].take(units[unit])
        return readings

    def _latency(self, asked: AskedRequest, composed: Composed, number: int) -> timedelta:
        law = self.settings.live_law(asked.tier)
        random = draw(self.settings.seed, "latency", asked.tier, asked.digest, number)
        factor = random.lognormvariate(0.0, law.sigma) if law.sigma > 0 else 1.0
        return timedelta(seconds=(law.base_s + law.per_token_s * composed.output_tokens) * factor)

    # Batches

    def submit(self, *, id_prefix: str, dialect: str, model: str, rows: Sequence[Row], sheet: dict[str, Any]) -> Batch:
        """Take a batch whose form is valid; its rows may still hold rejections."""
        with self.lock:
            now = self.clock.now()
            number = self._number(f"batch:{dialect}")
            key = f"{dialect}:{model}:{self._number(f'batch:{dialect}:{model}')}"
            law = self.settings.batch_by_model.get(model, self.settings.batch)
            random = draw(self.settings.seed, "batch", key)
            stuck = f"{dialect}:{number}" in self.settings.stuck_batches
            duration_s = draw_duration_s(law, random, stuck=stuck)
            life = BatchLife(
                created_at=now,
                rows=len(rows),
                duration=timedelta(seconds=max(duration_s, self.settings.validation_s)),
                progress=draw_progress(law, random),
                window=timedelta(seconds=self.settings.window_s),
            )
            for row in rows:
                if row.asked is not None:
                    self.books.ask(row.asked)
                    row.first = self._asks[row.asked.digest] == 0
                    self._asks[row.asked.digest] += 1
            in_turn = sorted(rows, key=lambda row: hashlib.sha256(f"{key}:{row.custom_id}".encode()).digest())
            return self._enter(
                Batch(
                    id=self.new_id(id_prefix),
                    dialect=dialect,
                    key=key,
                    model=model,
                    created_at=now,
                    life=life,
                    rows=in_turn,
                    sheet=sheet,
                )
            )

    def submit_failed(self, *, id_prefix: str, dialect: str, sheet: dict[str, Any]) -> Batch:
        """Take a batch that will turn out to have failed as a whole; nothing of it is worked on."""
        with self.lock:
            return self._enter(
                Batch(
                    id=self.new_id(id_prefix),
                    dialect=dialect,
                    key=f"{dialect}:failed:{self._number(f'failed:{dialect}')}",
                    model="",
                    created_at=self.clock.now(),
                    life=None,
                    rows=[],
                    sheet=sheet,
                )
            )

    def _enter(self, batch: Batch) -> Batch:
        self._batches[batch.id] = batch
        self.books.batches_created += 1
        return batch

    def _number(self, kind: str) -> int:
        number = self._numbers[kind]
        self._numbers[kind] += 1
        return number

    def batch(self, dialect: str, batch_id: str) -> Batch | None:
        """Return a batch as it is now, its finished rows worked on and billed."""
        with self.lock:
            batch = self._batches.get(batch_id)
            if batch is None or batch.dialect != dialect:
                return None
            self._work(batch)
            return batch

    def batches(self, dialect: str) -> list[Batch]:
        """Return a dialect's batches, newest first; rows may lag until `batch` looks at one."""
        with self.lock:
            return [batch for batch in reversed(self._batches.values()) if batch.dialect == dialect]

    def cancel(self, batch: Batch) -> None:
        """Ask for a batch's end; asking twice changes nothing."""
        with self.lock:
            life = batch.life
            if life is None or life.cancel_at is not None:
                return
            low, high = self.settings.cancel_s
            takes_s = draw(self.settings.seed, "cancel", batch.key).uniform(low, high)
            life.cancel(self.clock.now(), timedelta(seconds=takes_s))
            self.books.batches_cancelled += 1

    def forget(self, batch: Batch) -> None:
        """Delete an ended batch."""
        with self.lock:
            self._work(batch)
            del self._batches[batch.id]

    def enqueued_tokens(self, dialect: str, model: str) -> int:
        """Return the input tokens of a model's unfinished batches."""
        with self.lock:
            now = self.clock.now()
            return sum(
                row.asked.input_tokens
                for batch in self._batches.values()
                if batch.dialect == dialect and batch.model == model
                if batch.life is not None and now < batch.life.end[0]
                for row in batch.rows
                if row.asked is not None
            )

    def _work(self, batch: Batch) -> None:
        """Do what the batch has done by now, and bill it."""
        if batch.life is None:
            return
        until = batch.life.rows_done(self.clock.now())
        for row in batch.rows[batch.worked : until]:
            row.done = True
            if row.asked is None:
                batch.failed += 1
            elif self._faults.row_error(batch.key, row.custom_id):
                row.failed = True
                batch.failed += 1
                self.books.errors += 1
            else:
                row.composed = compose(
                    row.asked, self.settings, self._faults, first=row.first, answering=self._answering
                )
                self.books.bill(row.asked, row.composed)
                batch.completed += 1
        batch.worked = max(batch.worked, until)

    # Account

    def account(self) -> Account:
        """Return the account as of now, all that batches did by now included."""
        with self.lock:
            for batch in self._batches.values():
                self._work(batch)
            return self.books.account(self.clock.now())
