"""Keeps a lease while its holder works."""

import asyncio
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

from prefect_llm_tiers.core.runs import Lease
from prefect_llm_tiers.engine.job import Ports
from prefect_llm_tiers.errors import LeaseLost, LedgerUnusable

__all__ = ["LEASE", "Heartbeat"]

LEASE = timedelta(minutes=5)
"""How long a holder may be silent before another takes over; a create that may take longer is outlasted by it."""


class Heartbeat:
    """Renews a lease three times in its span, until left or lost.

    A lost lease is not announced here: the next decision under it raises `LeaseLost`.

    Attributes:
        lease: The lease as last renewed.
    """

    def __init__(self, ports: Ports, lease: Lease) -> None:
        self._ports = ports
        self._task: asyncio.Task[None] | None = None
        self._least: datetime | None = None
        self.lease = lease

    def outlast(self, span: timedelta) -> Lease:
        """Renew the lease now, so that it lasts for a call that may take `span`, whatever stops this process.

        Raises:
            LeaseLost: Another holds it.
        """
        self._least = self._ports.clock.now() + span
        return self._renew()

    def _renew(self) -> Lease:
        until = self._ports.clock.now() + LEASE
        # A beat never shortens what was promised to a call under way.
        self.lease = self._ports.ledger.renew(self.lease, until=max(until, self._least or until))
        return self.lease

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
        clock = self._ports.clock
        while True:
            await clock.sleep_until(clock.now() + LEASE / 3)
            try:
                self._renew()
            except LeaseLost:
                return
            except LedgerUnusable:
                # Busy for once, perhaps; two more beats fit into the lease. A ledger that stays unusable stops
                # whoever works at its next write.
                continue
