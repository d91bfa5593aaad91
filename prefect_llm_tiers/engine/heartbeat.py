"""Keeps a lease while its holder works."""

import asyncio
from datetime import timedelta
from types import TracebackType
from typing import Self

from prefect_llm_tiers.core.runs import Lease
from prefect_llm_tiers.engine.job import Ports
from prefect_llm_tiers.errors import LeaseLost, LedgerUnusable

__all__ = ["LEASE", "Heartbeat"]

LEASE = timedelta(minutes=5)
"""How long a holder may be silent before another takes over; longer than any one call that a lease covers."""


class Heartbeat:
    """Renews a lease three times in its span, until left or lost.

    A lost lease is not announced here: the next decision under it raises `LeaseLost`.

    Attributes:
        lease: The lease as last renewed.
    """

    def __init__(self, ports: Ports, lease: Lease) -> None:
        self._ports = ports
        self._task: asyncio.Task[None] | None = None
        self.lease = lease

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._beat())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _beat(self) -> None:
        clock, ledger = self._ports.clock, self._ports.ledger
        while True:
            await clock.sleep_until(clock.now() + LEASE / 3)
            try:
                self.lease = ledger.renew(self.lease, until=clock.now() + LEASE)
            except LeaseLost:
                return
            except LedgerUnusable:
                # Busy for once, perhaps; two more beats fit into the lease. A ledger that stays unusable stops
                # whoever works at its next write.
                continue
