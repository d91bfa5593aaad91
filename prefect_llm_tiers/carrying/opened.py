"""A provider opened for a piece of work, on its clock, in a thread of its own, and closed after it."""

import random
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

from prefect_llm_tiers.artifacts import RunWatcher
from prefect_llm_tiers.blocks import ProviderBlock
from prefect_llm_tiers.carrying.beside import Stop, run_beside
from prefect_llm_tiers.carrying.identity import process_owner
from prefect_llm_tiers.carrying.withdrawing import withdrawing
from prefect_llm_tiers.core.ports import CallFailed, Ledger, Provider
from prefect_llm_tiers.engine.failures import error_of
from prefect_llm_tiers.engine.job import Ports
from prefect_llm_tiers.settings import keeps_batches

__all__ = ["Opened", "identify", "run_opened"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What a piece of work is given.

    Attributes:
        ports: The outside world.
        account: Whose key the block has.
        watcher: Shows the work in Prefect.
        stop: How it is told to end.
        scope: The run it belongs to; None outside any.
    """

    ports: Ports
    account: str
    watcher: RunWatcher
    stop: Stop
    scope: str | None

    def withdrawing(self) -> AbstractAsyncContextManager[None]:
        """Cancel the run's batches if it is being cancelled while inside."""
        return withdrawing(self.stop, self.ports, flow_run_id=self.scope, account=self.account)


def run_opened(
    work: Callable[[Opened], Coroutine[Any, Any, T]],
    *,
    block: ProviderBlock,
    ledger: Ledger,
    model: str,
    step: str,
    name: str,
    scope: str | None,
    keep_batches: bool | None,
    watcher: type[RunWatcher] = RunWatcher,
) -> T:
    """Run a piece of work with a provider, and return what it does.

    Args:
        work: What to do.
        block: The provider.
        ledger: What survives.
        model: The model that is asked, to find the account.
        step: Under which name it is shown.
        name: Stable name of the work on the clock.
        scope: The run it belongs to; None outside any.
        keep_batches: See `StepOptions`.
        watcher: How the work is shown in Prefect.

    Raises:
        LLMTiersError: See `errors`.
    """
    clock = block.clock()
    with watcher(step) as watching:

        async def main(stop: Stop) -> T:
            stop.bind()
            provider = block.open()
            try:
                account = await identify(provider, model, at=block.host)
                ports = Ports(
                    ledger=ledger,
                    provider=provider,
                    clock=clock,
                    # Jitter, not a secret; seeded, so that a run can be played again.
                    chance=random.Random(name),  # noqa: S311
                    watcher=watching,
                    owner=process_owner(),
                )
                return await work(Opened(ports=ports, account=account, watcher=watching, stop=stop, scope=scope))
            finally:
                await provider.aclose()

        return run_beside(
            lambda stop: clock.run(main(stop), name=name), flow_run_id=scope, keep=keeps_batches(keep_batches)
        )


async def identify(provider: Provider, model: str, *, at: str) -> str:
    """Return whose key a provider was opened with.

    Args:
        provider: The adapter.
        model: The model that is asked.
        at: The provider's host, to be named where it cannot be reached.

    Raises:
        LLMTiersError: It does not say, or refuses the key or the model.
    """
    try:
        return await provider.identify(model)
    except CallFailed as failure:
        raise error_of(failure.meaning, doing=f"looking up model {model!r} at {at}") from None
