r"""The single call as a Prefect task: one prompt, the cheapest tier that meets its deadline, one answer.

It works over the same engine and ledger as a step: a prompt that was answered before is not asked again, one that is
being asked is waited for, and every answer is priced in the tier that served it. Neither prompt nor answer reaches
Prefect's API.

```python
@flow
def triage(report: str) -> Label:
    return complete(
        f"Label this report:\n{report}",
        provider="openai-prod",
        model="gpt-6-luna",
        output=Label,
        tiers=["flex", "standard"],
        deadline=timedelta(minutes=5),
    )
```
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, Self, cast

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, PrefectFutureList
from pydantic import BaseModel

from prefect_llm_tiers.blocks import LedgerDatabase, ProviderBlock
from prefect_llm_tiers.carrying.beside import in_a_thread
from prefect_llm_tiers.carrying.completing import complete_one
from prefect_llm_tiers.carrying.identity import next_run_key, run_scope
from prefect_llm_tiers.carrying.prompts import Prompt, held, released
from prefect_llm_tiers.carrying.submitting import Asked
from prefect_llm_tiers.core.tiers import LIVE_TIERS, Tier
from prefect_llm_tiers.due import By
from prefect_llm_tiers.errors import InputError
from prefect_llm_tiers.options import StepOptions

__all__ = ["Complete", "complete"]


def _carrier(prompt: Any, asked: Asked) -> Any:
    """Ask one prompt; what Prefect runs."""
    return complete_one(released(prompt), asked)


class Complete(Task[..., Any]):
    """The task `complete`; `.submit`, `.map`, `.with_options`, `wait_for=` and `return_state=` work as with others."""

    def __call__(  # type: ignore[override]
        self,
        prompt: Prompt,
        *,
        provider: ProviderBlock | str,
        model: str,
        endpoint: str | None = None,
        output: type[BaseModel] | None = None,
        system: str | None = None,
        max_output_tokens: int | None = None,
        expected_output_tokens: float | None = None,
        options: Mapping[str, Any] | None = None,
        tiers: Sequence[Tier | str] | None = None,
        deadline: timedelta | datetime | By | None = None,
        on_time: float = 0.99,
        infeasible: Literal["raise", "best_effort"] = "raise",
        on_miss: Literal["finish", "raise"] = "finish",
        min_saving_usd: Decimal | float = 0,
        max_attempts: int = 3,
        reuse_for: timedelta | None = timedelta(days=30),
        on_input_change: Literal["raise", "ask"] = "raise",
        keep_batches: bool | None = None,
        ledger: LedgerDatabase | str | None = None,
        run_key: str | None = None,
        return_state: bool = False,
        wait_for: Any = None,
    ) -> Any:
        """Ask one prompt and return the answer: its text, or an instance of `output`.

        A prompt that was answered before, by whatever step or call, is not asked again, nor is one that another run
        asks at this moment. A restarted flow run finds its calls by their order, or by `run_key`.

        Args:
            prompt: A text, a list of messages, or the request's body as a dict; a future of one.
            provider: A provider block, or the name of one.
            model: The model to ask.
            endpoint: As on a step; not embeddings.
            output: A pydantic model that the answer must be an instance of.
            system: Standing instructions, ahead of the prompt.
            max_output_tokens: Bound on the answer, reasoning included; Anthropic requires it.
            expected_output_tokens: What the answer is expected to take, for the plan.
            options: Further fields of the provider's request, as `{"temperature": 0}`.
            tiers: Tiers that may be used, as `["flex", "standard"]`; by default every live tier that is offered.
            deadline: When the answer must be there: a span from now, an aware instant, or `by(...)`. Without one, flex
                is given 15 minutes, and the next allowed tier the rest.
            on_time: Chance of being on time that is asked for.
            infeasible: What to do where no tier can meet the deadline: `raise`, or `best_effort`.
            on_miss: What to do when the deadline is missed: `finish`, or `raise`.
            min_saving_usd: Least saving for which a cheaper tier is used.
            max_attempts: How often it is asked where answers do not fit `output`.
            reuse_for: Greatest age of an answer that is used again; None asks anew.
            on_input_change: When a restarted run brings another prompt: `raise`, or `ask` it.
            keep_batches: As on a step, where the batch tier is allowed.
            ledger: A ledger block, a path or a URL; by default the machine's.
            run_key: Identity of the call within its flow run; by default its ordinal.
            return_state: Return Prefect's state instead.
            wait_for: What must be done first.

        Raises:
            AnswerRefused: The model or the provider's policy declined.
            NoAnswer: No answer came that can be used; the reason says why.
            LLMTiersError: See `errors`.

        Example:
            ```python
            answer = complete("Say hello.", provider="openai-prod", model="gpt-6-luna", tiers=["flex", "standard"])
            ```
        """
        asked = self._asked(
            provider=provider,
            model=model,
            endpoint=endpoint,
            output=output,
            system=system,
            max_output_tokens=max_output_tokens,
            expected_output_tokens=expected_output_tokens,
            options=options,
            tiers=tiers,
            deadline=deadline,
            on_time=on_time,
            infeasible=infeasible,
            on_miss=on_miss,
            min_saving_usd=min_saving_usd,
            max_attempts=max_attempts,
            reuse_for=reuse_for,
            on_input_change=on_input_change,
            keep_batches=keep_batches,
            ledger=ledger,
            run_key=run_key,
        )
        run = cast("Any", super().__call__)
        return run(held(prompt), asked, return_state=return_state, wait_for=wait_for)

    async def acall(self, prompt: Prompt, *, return_state: bool = False, wait_for: Any = None, **asking: Any) -> Any:
        """Do what calling does, without holding the event loop of an async flow."""
        run, asked = cast("Any", super().__call__), self._asked(**asking)
        return await in_a_thread(lambda: run(held(prompt), asked, return_state=return_state, wait_for=wait_for))

    def submit(  # type: ignore[override]
        self, prompt: "Prompt | PrefectFuture[Any]", *, return_state: bool = False, wait_for: Any = None, **asking: Any
    ) -> "PrefectFuture[Any]":
        """Do what calling does on the flow's task runner; return a future."""
        run = cast("Any", super().submit)
        future = run(held(prompt), self._asked(**asking), return_state=return_state, wait_for=wait_for)
        return cast("PrefectFuture[Any]", future)

    def map(  # type: ignore[override]
        self,
        prompts: "Iterable[Prompt | PrefectFuture[Any]] | PrefectFuture[Iterable[Prompt]]",
        *,
        return_state: bool = False,
        wait_for: Any = None,
        **asking: Any,
    ) -> "PrefectFutureList[Any]":
        """Submit each of several prompts, all asked alike; return a future of each, in order.

        Each is a task run of its own: for thousands of prompts use a step.

        Raises:
            InputError: It is a single prompt.
        """
        if isinstance(prompts, str | Mapping):
            msg = f"{self.name}.map takes several prompts, not {type(prompts).__name__}. Put a single one into a list."
            raise InputError(msg)
        given = asking.pop("run_key", None)
        listed = list(prompts.result() if isinstance(prompts, PrefectFuture) else prompts)
        asked = [
            self._asked(**asking, run_key=None if given is None else f"{given}/{number}")
            for number in range(len(listed))
        ]
        run = cast("Any", super().map)
        futures = run([held(one) for one in listed], asked, return_state=return_state, wait_for=wait_for)
        return cast("PrefectFutureList[Any]", futures)

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
        tiers: Sequence[Tier | str] | None = None,
        run_key: str | None = None,
        **others: Any,
    ) -> Asked:
        step_options = StepOptions(
            provider=provider,
            model=model,
            options=dict(options or {}),
            tiers=cast("Any", LIVE_TIERS if tiers is None else tiers),
            **others,
        )
        return Asked(scope=run_scope(), run_key=next_run_key(self.name, run_key), step=self.name, options=step_options)


complete = Complete(_carrier, name="complete", cache_policy=NO_CACHE, persist_result=False)
# Prefect gives a task its function's name; this one is known by its own.
complete.__dict__["__name__"] = "complete"
