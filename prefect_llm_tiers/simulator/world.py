"""The seeded world behind both dialects: it answers, lets batches live, and keeps the account."""

import hashlib
import threading
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from prefect_llm_tiers.core.ports import Clock
from prefect_llm_tiers.simulator.account import Account, Billed, Books
from prefect_llm_tiers.simulator.answers import Answering, compose
from prefect_llm_tiers.simulator.asked import AskedRequest, draw
from prefect_llm_tiers.simulator.batches import Batch, Row, draw_fate
from prefect_llm_tiers.simulator.book import Model, find_model
from prefect_llm_tiers.simulator.draws import Draws
from prefect_llm_tiers.simulator.live_calls import LiveCalls, Served
from prefect_llm_tiers.simulator.lives import BatchLife, End, draw_duration_s, draw_progress
from prefect_llm_tiers.simulator.services import PLAYED, Played
from prefect_llm_tiers.simulator.settings import WorldSettings

__all__ = ["World"]


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
        self.origin = clock.now()
        self._stem = f"{settings.seed}:{self.origin.isoformat()}"
        self._answering = answering
        self.draws = Draws(settings)
        self.books = Books(self.draws.struck)
        self._asks: Counter[str] = Counter()
        self._numbers: Counter[str] = Counter()
        self._batches: dict[str, Batch] = {}
        self._live = LiveCalls(
            settings,
            clock,
            lock=self.lock,
            books=self.books,
            draws=self.draws,
            asks=self._asks,
            answering=answering,
        )

    def new_id(self, prefix: str) -> str:
        """Return the next id of a kind: the same in every run of one world, and another's in none."""
        with self.lock:
            number = self._numbers[prefix]
            self._numbers[prefix] += 1
        return self.id_of(prefix, number)

    def id_of(self, prefix: str, *key: object) -> str:
        """Return the id that follows from a key, so that a result file reads the same every time."""
        name = f"{self._stem}:{prefix}:{':'.join(map(str, key))}"
        return prefix + hashlib.sha256(name.encode()).hexdigest()[:32]

    def model(self, dialect: str, name: object) -> Model | None:
        """Return a model that a dialect offers now."""
        alive_at = self.clock.now() if self.settings.enforce_shutdown else None
        return find_model(dialect, name, service=self.settings.service, alive_at=alive_at)

    @property
    def played(self) -> Played:
        """What the service that OpenAI's dialect plays does in its own way."""
        return PLAYED[self.settings.service]

    async def ask(self, asked: AskedRequest) -> Served:
        """Answer a live call after its latency; see `LiveCalls.ask`."""
        return await self._live.ask(asked)

    # Batches

    def look_at_page(self, page: str) -> int:
        """Return how often this page of a list was asked for before, and count it."""
        return self._number(f"page:{page}")

    def fate_key(self, dialect: str, digest: str) -> str:
        """Return what the faults of a batch with these rows are keyed by, and count its coming."""
        with self.lock:
            return f"{dialect}:{digest}:{self._number(f'fate:{dialect}:{digest}')}"

    def call_key(self, dialect: str, digest: str) -> str:
        """Return what the faults of a call to create a batch with these rows are keyed by, and count the call."""
        with self.lock:
            return f"{dialect}:{digest}:{self._number(f'call:{dialect}:{digest}')}"

    def submit(
        self,
        *,
        id_prefix: str,
        dialect: str,
        model: str,
        rows: Sequence[Row],
        sheet: dict[str, Any],
        digest: str,
        fate_key: str,
        lands_at: datetime,
    ) -> Batch:
        """Take a batch whose form is valid; its rows may still hold rejections.

        Args:
            id_prefix: What its id begins with.
            dialect: Whose it is.
            model: The model of its rows.
            rows: Its requests.
            sheet: What the dialect wants to remember of it.
            digest: Names its bodies; see `rows_digest`.
            fate_key: See `fate_key`.
            lands_at: When it is taken: now, or later for one whose creation lands late.
        """
        with self.lock:
            number = self._number(f"batch:{dialect}")
            key = f"{dialect}:{model}:{self._number(f'batch:{dialect}:{model}')}"
            law = self.settings.batch_by_model.get(model, self.settings.batch)
            random = draw(self.settings.seed, "batch", key)
            stuck = f"{dialect}:{number}" in self.settings.stuck_batches
            duration_s = draw_duration_s(law, random, stuck=stuck)
            fate = draw_fate(self.draws, fate_key, lands_at)
            if fate.expires:
                duration_s = self.settings.window_s * (1.05 + 0.8 * self.draws.fraction("batch_expires_s", fate_key))
            life = BatchLife(
                created_at=lands_at,
                rows=len(rows),
                duration=timedelta(seconds=max(duration_s, self.settings.validation_s)),
                progress=draw_progress(law, random),
                window=timedelta(seconds=self.settings.window_s),
            )
            for row in rows:
                if row.asked is not None:
                    self.books.ask(row.asked)
                    row.first = self._asks[row.digest] == 0
                    self._asks[row.digest] += 1
            # By the bodies and not by the custom_ids, which may differ from run to run.
            in_turn = sorted(
                rows, key=lambda row: (hashlib.sha256(f"{key}:{row.digest}".encode()).digest(), row.custom_id)
            )
            return self._enter(
                Batch(
                    id=self.new_id(id_prefix),
                    dialect=dialect,
                    key=key,
                    model=model,
                    created_at=lands_at,
                    life=life,
                    fate=fate,
                    digest=digest,
                    rows=in_turn,
                    sheet=sheet,
                )
            )

    def submit_failed(
        self, *, id_prefix: str, dialect: str, digest: str, sheet: dict[str, Any], fate_key: str, lands_at: datetime
    ) -> Batch:
        """Take a batch that will turn out to have failed as a whole; nothing of it is worked on."""
        with self.lock:
            return self._enter(
                Batch(
                    id=self.new_id(id_prefix),
                    dialect=dialect,
                    key=f"{dialect}:failed:{self._number(f'failed:{dialect}')}",
                    model="",
                    created_at=lands_at,
                    life=None,
                    fate=draw_fate(self.draws, fate_key, lands_at),
                    digest=digest,
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
        """Return a batch as it is now, its finished rows worked on and billed; None while it cannot be found."""
        with self.lock:
            batch = self._batches.get(batch_id)
            if batch is None or batch.dialect != dialect or batch.forgotten:
                return None
            if self.clock.now() < batch.fate.found_from:
                return None
            self.work(batch)
            return batch

    def batches(self, dialect: str) -> list[Batch]:
        """Return a dialect's batches that lists show now, newest first; rows may lag until `work`."""
        with self.lock:
            now = self.clock.now()
            listed = [
                batch
                for batch in reversed(self._batches.values())
                if batch.dialect == dialect and not batch.forgotten and batch.fate.listed_from <= now
            ]
            # One that landed late was entered before it was created.
            return sorted(listed, key=lambda batch: batch.created_at, reverse=True)

    def every_batch(self) -> list[Batch]:
        """Return all batches ever, hidden, deleted and not yet landed ones too, as they are now."""
        with self.lock:
            for batch in self._batches.values():
                self.work(batch)
            return list(self._batches.values())

    def cancel(self, batch: Batch) -> None:
        """Ask for a batch's end; asking twice changes nothing."""
        with self.lock:
            life = batch.life
            if life is None or life.cancel_at is not None:
                return
            now = self.clock.now()
            low, high = self.settings.cancel_s
            takes = timedelta(seconds=draw(self.settings.seed, "cancel", batch.key).uniform(low, high))
            if self.draws.strikes("cancel_slow", batch.fate.key):
                takes = self.draws.span("cancel_slow_s", batch.fate.key)
            if self.draws.strikes("cancel_too_late", batch.fate.key):
                life.duration = min(life.duration, now - life.created_at)
            begins = now
            if self.draws.strikes("cancel_late", batch.fate.key):
                begins += self.draws.span("cancel_late_s", batch.fate.key)
            life.cancel(begins, takes)
            self.books.batches_cancelled += 1

    def forget(self, batch: Batch) -> None:
        """Delete an ended batch."""
        with self.lock:
            self.work(batch)
            batch.forgotten = True

    def enqueued_tokens(self, dialect: str, model: str) -> int:
        """Return the input tokens of a model's unfinished batches."""
        with self.lock:
            now = self.clock.now()
            return sum(
                row.asked.input_tokens
                for batch in self._batches.values()
                if batch.dialect == dialect and batch.model == model
                if batch.life is not None and batch.created_at <= now < batch.life.end[0]
                for row in batch.rows
                if row.asked is not None
            )

    def meets(self, fault: str, batch: Batch) -> None:
        """Count a fault of a batch's fate, the first time that it shows."""
        with self.lock:
            if fault not in batch.met:
                batch.met.add(fault)
                self.draws.struck[fault] += 1

    def work(self, batch: Batch) -> None:
        """Do what the batch has done by now, and bill it."""
        if batch.life is None:
            return
        now = self.clock.now()
        until = batch.life.rows_done(now)
        end_at, end = batch.life.end
        if batch.fate.expires and end is End.EXPIRED and now >= end_at:
            self.meets("batch_expires", batch)
        key = batch.fate.key
        for row in batch.rows[batch.worked : until]:
            row.done = True
            if row.asked is None:
                batch.failed += 1
            elif batch.fate.no_output or self.draws.strikes("batch_row_error_rate", key, row.digest):
                if batch.fate.no_output:
                    self.meets("no_output", batch)
                row.failed = True
                batch.failed += 1
                self.books.errors += 1
            elif self.draws.strikes("row_invalid", key, row.digest):
                row.refused = True
                batch.failed += 1
            else:
                row.composed = compose(row.asked, self.settings, self.draws, first=row.first, answering=self._answering)
                self.books.bill(row.asked, row.composed, where=batch.id)
                batch.completed += 1
        batch.worked = max(batch.worked, until)

    # Account

    def account(self) -> Account:
        """Return the account as of now, all that batches did by now included."""
        with self.lock:
            self.every_batch()
            return self.books.account(self.clock.now())

    def billed(self) -> dict[str, Billed]:
        """Return what was billed, by the digest of the body, all that batches did by now included."""
        with self.lock:
            self.every_batch()
            return self.books.billed()
