"""The plain pieces of the batch lane as Prefect tasks, for those who want only them.

They work over the same engine and ledger as a step: every batch is submitted once, whatever dies and whenever,
and what was paid for and came back is kept. Between them goes a `BatchTicket`, a plain value.

```python
@flow
def nightly(texts: list[str]) -> list[str | None]:
    ticket = submit_batch(texts, provider="openai-prod", model="gpt-6-luna", max_output_tokens=200)
    counts = wait_for_batch(ticket)
    return [answer.text for answer in collect_batch(ticket)]
```

A flow that died after `submit_batch` is run again, as the same flow run or as a new one: the same prompts are
found in the batch that carries them, and nothing is paid for twice. Neither prompts nor answers reach Prefect's
API, and none of the three caches or persists through Prefect unless told to: the ledger is what remembers.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Literal, Self, cast

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from pydantic import BaseModel

from prefect_llm_tiers.blocks import LedgerDatabase, ProviderBlock
from prefect_llm_tiers.carrying.collecting import collect, wait
from prefect_llm_tiers.carrying.identity import next_run_key, run_scope
from prefect_llm_tiers.carrying.prompts import Prompt, held, released
from prefect_llm_tiers.carrying.submitting import Asked, submit
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.due import By
from prefect_llm_tiers.options import StepOptions
from prefect_llm_tiers.tickets import BatchAnswer, BatchCounts, BatchTicket

__all__ = ["SubmitBatch", "collect_batch", "submit_batch", "wait_for_batch"]


def _carrier(prompts: Any, asked: Asked) -> BatchTicket:
    """Submit prompts in batches; what Prefect runs."""
    return submit(released(prompts), asked)


class SubmitBatch(Task[..., BatchTicket]):
    """The task `submit_batch`; `.submit`, `.with_options`, `wait_for=` and `return_state=` work as with any task."""

    def __call__(  # type: ignore[override]
        self,
        prompts: Iterable[Prompt],
        *,
        provider: ProviderBlock | str,
        model: str,
        endpoint: str | None = None,
        output: type[BaseModel] | None = None,
        max_output_tokens: int | None = None,
        system: str | None = None,
        options: Mapping[str, Any] | None = None,
        reuse_for: timedelta | None = timedelta(days=30),
        on_input_change: Literal["raise", "ask"] = "raise",
        keep_batches: bool | None = None,
        ledger: LedgerDatabase | str | None = None,
        run_key: str | None = None,
        return_state: bool = False,
        wait_for: Any = None,
    ) -> BatchTicket:
        """Submit prompts in as few batches as hold them, each exactly once, and return a ticket for the answers.

        Returns when the provider has confirmed every batch. Prompts that were answered before are not asked
        again, and those that are out in a batch, this run's or another's, are joined. Called again with the same
        prompts after some came back without an answer, it asks only those.

        Args:
            prompts: Texts, lists of messages, or bodies for a raw endpoint.
            provider: A provider block, or the name of one. A block that was never saved is known to this process
                alone; another one that uses the ticket must be told.
            model: The model to ask.
            endpoint: As on a step.
            output: A pydantic model that every answer must be an instance of.
            max_output_tokens: Bound on an answer, reasoning included; Anthropic requires it.
            system: Standing instructions, ahead of every prompt.
            options: Further fields of the provider's request, as `{"temperature": 0}`.
            reuse_for: Greatest age of an answer that is used again; None asks everything anew.
            on_input_change: When a restarted run brings other prompts: `raise`, or `ask` what is new.
            keep_batches: Whether batches stay out where the flow run is cancelled while this waits.
            ledger: A ledger block, a path or a URL; by default the machine's.
            run_key: Identity of the call within its flow run; by default its ordinal.
            return_state: Return Prefect's state instead.
            wait_for: What must be done first.

        Raises:
            LLMTiersError: See `errors`.

        Example:
            ```python
            ticket = submit_batch(["Say hello.", "Say goodbye."], provider="openai-prod", model="gpt-6-luna")
            ```
        """
        asked = self._asked(
            provider=provider,
            model=model,
            endpoint=endpoint,
            output=output,
            max_output_tokens=max_output_tokens,
            system=system,
            options=options,
            reuse_for=reuse_for,
            on_input_change=on_input_change,
            keep_batches=keep_batches,
            ledger=ledger,
            run_key=run_key,
        )
        run = cast("Any", super().__call__)
        return cast("BatchTicket", run(held(prompts), asked, return_state=return_state, wait_for=wait_for))

    def submit(  # type: ignore[override]
        self, prompts: Iterable[Prompt], *, return_state: bool = False, wait_for: Any = None, **asking: Any
    ) -> "PrefectFuture[BatchTicket]":
        """Do what calling does on the flow's task runner; return a future."""
        run = cast("Any", super().submit)
        future = run(held(prompts), self._asked(**asking), return_state=return_state, wait_for=wait_for)
        return cast("PrefectFuture[BatchTicket]", future)

    def map(self, *_: Any, **__: Any) -> Any:
        """Refuse: a batch takes all the prompts.

        Raises:
            TypeError: Always.
        """
        msg = "submit_batch cannot be mapped: each prompt would become a batch of its own. Call it with all of them."
        raise TypeError(msg)

    def with_options(self, **changes: Any) -> Self:
        """Return a copy with other options of Prefect's, as `retries` or `tags`; this one stays as it is."""
        made = type(self)(_carrier, cache_policy=NO_CACHE, persist_result=False)
        made.__dict__.update(super().with_options(**changes).__dict__)
        return made

    def _asked(
        self,
        *,
        provider: ProviderBlock | str,
        model: str,
        options: Mapping[str, Any] | None = None,
        run_key: str | None = None,
        **others: Any,
    ) -> Asked:
        step_options = StepOptions(
            provider=provider, model=model, options=dict(options or {}), tiers=(Tier.BATCH,), **others
        )
        return Asked(scope=run_scope(), run_key=next_run_key(self.name, run_key), step=self.name, options=step_options)


submit_batch = SubmitBatch(_carrier, name="submit_batch", cache_policy=NO_CACHE, persist_result=False)
# Prefect gives a task its function's name; this one is known by its own.
submit_batch.__dict__["__name__"] = "submit_batch"


@task(name="wait_for_batch", cache_policy=NO_CACHE, persist_result=False)
def wait_for_batch(
    ticket: BatchTicket,
    *,
    deadline: timedelta | datetime | By | None = None,
    provider: ProviderBlock | str | None = None,
    ledger: LedgerDatabase | str | None = None,
) -> BatchCounts:
    """Sleep until every batch of a ticket has ended and what it brought is in the ledger; return the counts.

    A batch that expired or was cancelled has ended too: what it finished is kept, the rest is counted as
    unanswered. Waiting holds a worker; a process that dies here loses nothing, and another one may wait for the
    same ticket.

    Args:
        ticket: What `submit_batch` returned.
        deadline: When to stop waiting: a span from now, an aware instant, or `by(...)`. The counts tell then what is
            still out; nothing is cancelled.
        provider: The provider's block, where the ticket has no name for it.
        ledger: Where the ledger is, if not where the ticket says.

    Raises:
        LLMTiersError: See `errors`.

    Example:
        ```python
        counts = wait_for_batch(ticket, deadline=timedelta(hours=6))
        if not counts.done:
            ...
        ```
    """
    return wait(ticket, deadline=deadline, provider=provider, ledger=ledger)


@task(name="collect_batch", cache_policy=NO_CACHE, persist_result=False)
def collect_batch(
    ticket: BatchTicket,
    *,
    output: type[BaseModel] | None = None,
    ledger: LedgerDatabase | str | None = None,
) -> list[BatchAnswer]:
    """Return one `BatchAnswer` for each prompt of a ticket, in the order of the prompts.

    Reads the ledger and asks the provider nothing: may be called before everything is back, and as often as you
    like. All answers stand in memory at once; for millions of rows use a step.

    Args:
        ticket: What `submit_batch` returned.
        output: Another pydantic model to read the answers with than the ticket's: they are kept as they came, so
            that this asks nothing anew.
        ledger: Where the ledger is, if not where the ticket says.

    Raises:
        LLMTiersError: See `errors`.

    Example:
        ```python
        for answer in collect_batch(ticket):
            print(answer.text or answer.reason)
        ```
    """
    return collect(ticket, output, ledger)
