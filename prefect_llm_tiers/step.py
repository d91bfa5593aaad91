"""A step: a prompt function over the rows of a frame, as a Prefect task."""

import asyncio
import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from types import FunctionType
from typing import TYPE_CHECKING, Any, Literal, Self, cast, overload

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.context import TaskRunContext
from pydantic import BaseModel

from prefect_llm_tiers.artifacts import SilentWatcher
from prefect_llm_tiers.blocks import LedgerDatabase, ProviderBlock, load_ledger, load_provider
from prefect_llm_tiers.carrying.identity import Call, next_run_key, run_scope
from prefect_llm_tiers.carrying.preparing import Prepared, run_prepared
from prefect_llm_tiers.carrying.rows import carry_out
from prefect_llm_tiers.chain import ChainValue, Outline, current_chain
from prefect_llm_tiers.core.ports import Ledger
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.due import By
from prefect_llm_tiers.engine.preview import preview
from prefect_llm_tiers.errors import ConfigurationError
from prefect_llm_tiers.frames.signature import Reading, added_columns, reading_of
from prefect_llm_tiers.options import OPTION_NAMES, StepOptions, terms_of
from prefect_llm_tiers.planning.plan import Plan

if TYPE_CHECKING:
    import polars as pl
    from prefect.client.schemas.objects import State
    from prefect.futures import PrefectFuture

    from prefect_llm_tiers.frames.reading import Rows

__all__ = ["LLMStep", "llm_step"]


def _carrier(rows: "Rows", call: Call | None = None) -> "pl.DataFrame":
    """Stand in for the prompt function in Prefect's eyes: take rows, return rows."""
    context = TaskRunContext.get()
    step = context.task if context is not None else None
    if not isinstance(step, LLMStep):
        msg = (
            "A step's `.fn` was called outside of a run of the step. Call the step itself; to test what it asks, call "
            "its `.prompt` with the values of one row."
        )
        raise ConfigurationError(msg)
    return carry_out(step, rows, call or step.next_call({}))


class LLMStep(Task[..., "pl.DataFrame"]):
    """A prompt function as a Prefect task that takes rows and returns them with its answers.

    Call it with a polars DataFrame, a LazyFrame or the path of a Parquet file; `.submit`, `.with_options`,
    `wait_for=` and `return_state=` work as with any task. It neither caches nor persists through Prefect unless
    told to: the ledger is its cache, and rows never become task inputs.

    Args:
        prompt: Builds one prompt from one row.
        options: What is asked, whom, and by when.
        task_options: What `prefect.task` takes.

    Raises:
        ConfigurationError: The prompt function's parameters do not say which columns it reads.
    """

    def __init__(self, prompt: Callable[..., Any], options: StepOptions, **task_options: Any) -> None:
        self.prompt = prompt
        self.options = options
        # A copy of one function under the prompt's own name: the task key stays stable, and a plain task over
        # the prompt function would bind the frame to its first column parameter.
        carrier = FunctionType(_carrier.__code__, _carrier.__globals__, prompt.__name__, _carrier.__defaults__)
        carrier.__qualname__ = prompt.__qualname__
        carrier.__module__ = prompt.__module__
        carrier.__doc__ = prompt.__doc__
        task_options.setdefault("cache_policy", NO_CACHE)
        task_options.setdefault("persist_result", False)
        task_options.setdefault("name", prompt.__name__)
        super().__init__(carrier, **task_options)
        # What a user may write, in the place of the carrier's own parameters.
        self.__signature__ = _signature_of(prompt, self.reading({}))

    # Calling

    @overload  # type: ignore[override]
    def __call__(
        self, rows: Any, *, return_state: Literal[False] = False, wait_for: Any = None, **constants: Any
    ) -> "pl.DataFrame": ...

    @overload
    def __call__(
        self, rows: Any, *, return_state: Literal[True], wait_for: Any = None, **constants: Any
    ) -> "State[pl.DataFrame]": ...

    def __call__(self, rows: Any, *, return_state: bool = False, wait_for: Any = None, **constants: Any) -> Any:
        """Ask about every row and return the frame with the step's columns.

        Args:
            rows: A polars DataFrame, a LazyFrame, the path of a Parquet file, or a future of one of them.
            return_state: Return Prefect's state instead.
            wait_for: What must be done first.
            constants: Values for the prompt function's parameters that have defaults.

        Raises:
            LLMTiersError: See `errors`.
        """
        return super().__call__(rows, self.next_call(constants), return_state=return_state, wait_for=wait_for)

    @overload
    async def acall(
        self, rows: Any, *, return_state: Literal[False] = False, wait_for: Any = None, **constants: Any
    ) -> "pl.DataFrame": ...

    @overload
    async def acall(
        self, rows: Any, *, return_state: Literal[True], wait_for: Any = None, **constants: Any
    ) -> "State[pl.DataFrame]": ...

    async def acall(self, rows: Any, *, return_state: bool = False, wait_for: Any = None, **constants: Any) -> Any:
        """Do what calling does, without holding the event loop of an async flow."""
        call = self.next_call(constants)
        run = super().__call__
        return await asyncio.to_thread(run, rows, call, return_state=return_state, wait_for=wait_for)

    @overload  # type: ignore[override]
    def submit(
        self, rows: Any, *, return_state: Literal[False] = False, wait_for: Any = None, **constants: Any
    ) -> "PrefectFuture[pl.DataFrame]": ...

    @overload
    def submit(
        self, rows: Any, *, return_state: Literal[True], wait_for: Any = None, **constants: Any
    ) -> "State[pl.DataFrame]": ...

    def submit(self, rows: Any, *, return_state: bool = False, wait_for: Any = None, **constants: Any) -> Any:
        """Do what calling does on the flow's task runner; return a future."""
        return super().submit(rows, self.next_call(constants), return_state=return_state, wait_for=wait_for)

    def map(self, *_: Any, **__: Any) -> Any:
        """Refuse: a step takes the whole frame.

        Raises:
            TypeError: Always.
        """
        msg = (
            f"Step {self.name!r} cannot be mapped: mapping over a frame would call it once a column. Call it with the "
            f"frame, or use {self.name}.submit(frame) to run it beside others."
        )
        raise TypeError(msg)

    def with_options(self, **changes: Any) -> Self:
        """Return a copy with other options, the step's own or Prefect's; this one stays as it is.

        Raises:
            ConfigurationError: There is no such option, or its value cannot work.
        """
        own = {name: changes.pop(name) for name in list(changes) if name in OPTION_NAMES}
        _check_task_options(changes)
        step = copy.copy(self)
        step.__dict__.update(super().with_options(**changes).__dict__)
        step.prompt = self.prompt
        step.options = replace(self.options, **own)
        step.__signature__ = _signature_of(step.prompt, step.reading({}))
        return step

    def next_call(self, constants: dict[str, Any]) -> Call:
        """Return the identity of a call that begins now, in the run and the chain that the caller is in."""
        scope = run_scope()
        run_key = next_run_key(self.name, self.options.run_key)
        chain = current_chain()
        value = chain.value_for(self) if chain is not None else None
        if chain is not None and value is not None and scope is not None:
            chain.entered(scope, self, run_key)
        strayed = chain is not None and value is None
        return Call(scope=scope, run_key=run_key, constants=constants, chain=value, strayed=strayed)

    # What a chain needs to know

    @property
    def column(self) -> str:
        """The column that the step adds its answers in."""
        return self.options.column or self.name

    @property
    def adds(self) -> list[str]:
        """All columns that the step adds."""
        return added_columns(self.column, meta=self.options.meta)

    def reading(self, constants: Mapping[str, Any]) -> Reading:
        """Return what the prompt function reads. Raises `ConfigurationError`."""
        return reading_of(self.prompt, columns=self.options.columns, constants=constants, step=self.name)

    def reads_any(self, columns: Sequence[str]) -> bool:
        """Return whether the prompt function reads one of some columns; one that takes whole rows reads all."""
        reading = self.reading({})
        return reading.whole_row or not set(reading.columns.values()).isdisjoint(columns)

    def provider_block(self) -> ProviderBlock:
        """Return the step's provider. Raises `ConfigurationError`."""
        return load_provider(self.options.provider)

    def open_ledger(self) -> Ledger:
        """Return the step's ledger. Raises `LedgerUnusable`."""
        return load_ledger(self.options.ledger)

    def outline(self, *, after: tuple[str, ...]) -> Outline:
        """Return what the plan of an earlier step needs to know of this one."""
        options, reading = self.options, self.reading({})
        terms = terms_of(options, self.name)
        limits = terms.capabilities.batch
        return Outline(
            name=self.name,
            provider=terms.block.answering().known_as,
            model=options.model,
            tiers=terms.tiers,
            after=after,
            rate=terms.block.rate(options.max_concurrency),
            window=limits.window if limits else None,
            cancel=limits.cancel if limits else timedelta(0),
            reads=None if reading.whole_row else tuple(reading.columns.values()),
            adds=self.column,
            output_tokens=options.output_tokens,
        )

    # Planning

    def plan(self, rows: "Rows", **constants: Any) -> Plan:
        """Return what asking about these rows would cost and when it would be done; nothing is paid.

        Looks the account and the model up with the provider, and in the ledger which rows are answered.

        Raises:
            LLMTiersError: See `errors`.
        """
        chain = current_chain()
        return self.plan_in(chain.value_for(self) if chain is not None else None, rows, **constants)

    def plan_in(self, chain: ChainValue | None, rows: "Rows", **constants: Any) -> Plan:
        """Return the plan of a chain that begins with this step; see `plan`."""
        from prefect_llm_tiers.frames.reading import as_frame

        call = Call(
            scope=run_scope(),
            run_key=next_run_key(self.name, self.options.run_key, peek=True),
            constants=constants,
            chain=chain,
        )

        async def planned(prepared: Prepared) -> Plan:
            return preview(prepared.job, prepared.ports)

        return run_prepared(self, as_frame(rows), call, planned, SilentWatcher())


def _signature_of(prompt: Callable[..., Any], reading: Reading) -> inspect.Signature:
    """Return what a call of a step takes: the rows, and the prompt function's constants as keywords."""
    by_keyword, either = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    taken = inspect.signature(prompt).parameters
    constants = [taken[name].replace(kind=by_keyword) for name in reading.constants]
    return inspect.Signature(
        [
            inspect.Parameter("rows", either, annotation="Rows"),
            *constants,
            inspect.Parameter("return_state", by_keyword, default=False, annotation=bool),
            inspect.Parameter("wait_for", by_keyword, default=None),
        ],
        return_annotation="pl.DataFrame",
    )


def llm_step(
    *,
    provider: ProviderBlock | str,
    model: str,
    endpoint: str | None = None,
    output: type[BaseModel] | None = None,
    column: str | None = None,
    overwrite: bool = False,
    meta: bool = False,
    columns: Mapping[str, str] | None = None,
    system: str | None = None,
    max_output_tokens: int | None = None,
    expected_output_tokens: float | None = None,
    options: Mapping[str, Any] | None = None,
    samples: int = 1,
    deadline: timedelta | datetime | By | None = None,
    on_time: float = 0.99,
    infeasible: Literal["raise", "best_effort"] = "raise",
    on_miss: Literal["finish", "raise"] = "finish",
    tiers: "Sequence[Tier | str] | None" = None,
    interactive: bool = False,
    min_saving_usd: Decimal | float = 0,
    max_failed: int = 0,
    max_attempts: int = 3,
    max_concurrency: int | None = None,
    reuse_for: timedelta | None = timedelta(days=30),
    on_input_change: Literal["raise", "ask"] = "raise",
    run_key: str | None = None,
    keep_batches: bool | None = None,
    ledger: LedgerDatabase | str | None = None,
    **task_options: Any,
) -> Callable[[Callable[..., Any]], LLMStep]:
    r"""Turn a function that builds one prompt from one row into a step over all rows.

    The function's parameters are the columns it reads; those with defaults are constants that a call may
    set, and one named `row` receives the row as a dict. It returns a text, a list of messages, or a request's
    body as a dict. The step keeps it as `.prompt`, to be called in a unit test.

    Args:
        provider: A provider block, or the name of one.
        model: The model to ask.
        endpoint: `responses` (default on OpenAI), `chat/completions`, or `messages` (Anthropic). With
            `embeddings` the column is `List(Float32)`, or `Array(Float32, n)` with `options={"dimensions": n}`.
            At `completions`, `moderations`, `images/generations`, `images/edits` and `videos` the prompt function
            returns the request's body as a dict, and the column is the reply's body as JSON text.
        output: A pydantic model that every answer must be an instance of; becomes a struct column, in which
            enums stand as their values, and dates and decimals as text.
        column: Name of the added column; by default the step's name.
        overwrite: Whether an existing column may be replaced.
        meta: Also add `NAME_meta`: tier served, price, tokens, whether the answer was there before.
        columns: Columns by parameter, where the names differ.
        system: Standing instructions, ahead of every prompt.
        max_output_tokens: Bound on an answer, reasoning included; Anthropic requires it.
        expected_output_tokens: What an answer is expected to take, for the plan.
        options: Further fields of the provider's request, as `{"temperature": 0}`.
        samples: How often the same thing is asked; more than one makes the column a list.
        deadline: When the step must be done: a span from the moment its input is ready, an aware instant,
            or `by(...)`. Stored at the first entry of a step run, which binds every later one.
        on_time: Chance of meeting the deadline that is asked for.
        infeasible: At a deadline that cannot be met: `raise` before anything is paid, or `best_effort`.
        on_miss: At a missed deadline: `finish` on the cheapest live tier, or `raise`.
        tiers: Tiers that may be used; by default all that the provider offers for the model.
        interactive: Whether single requests must stay visible and stoppable; rules batch out.
        min_saving_usd: Least expected saving, in US dollars, for which a cheap tier is used.
        max_failed: Rows that may fail before `RowsFailed` is raised.
        max_attempts: How often a row is asked whose answers are of no use.
        max_concurrency: Live calls in flight at most; cannot exceed the block's.
        reuse_for: Greatest age of an answer that is used again; None asks everything anew.
        on_input_change: When a restarted run brings other rows: `raise`, or `ask` what is new.
        run_key: Identity of the call within its flow run; by default its ordinal.
        keep_batches: Whether batches stay out where the flow run is cancelled, for a later run to attach to; by
            default the machine's setting, and without one they are cancelled.
        ledger: A ledger block, a path or a URL; by default the machine's.
        task_options: What `prefect.task` takes, as `retries` or `tags`.

    Raises:
        ConfigurationError: The parameters cannot work.

    Example:
        ```python
        @llm_step(provider="openai-prod", model="gpt-6-luna", max_output_tokens=200)
        def summary(title: str, body: str) -> str:
            return f"Summarize for an on-call engineer.\n\n# {title}\n{body}"
        ```
    """
    _check_task_options(task_options)
    step_options = StepOptions(
        provider=provider,
        model=model,
        endpoint=endpoint,
        output=output,
        column=column,
        overwrite=overwrite,
        meta=meta,
        columns=dict(columns or {}),
        system=system,
        max_output_tokens=max_output_tokens,
        expected_output_tokens=expected_output_tokens,
        options=dict(options or {}),
        samples=samples,
        deadline=deadline,
        on_time=on_time,
        infeasible=infeasible,
        on_miss=on_miss,
        tiers=cast("tuple[Tier, ...] | None", tiers),
        interactive=interactive,
        min_saving_usd=cast("Decimal", min_saving_usd),
        max_failed=max_failed,
        max_attempts=max_attempts,
        max_concurrency=max_concurrency,
        reuse_for=reuse_for,
        on_input_change=on_input_change,
        run_key=run_key,
        keep_batches=keep_batches,
        ledger=ledger,
    )

    def decorate(prompt: Callable[..., Any]) -> LLMStep:
        return LLMStep(prompt, step_options, **task_options)

    return decorate


_TASK_OPTIONS = frozenset(inspect.signature(Task.__init__).parameters) - {"self", "fn"}


def _check_task_options(given: Mapping[str, Any]) -> None:
    if unknown := sorted(given.keys() - _TASK_OPTIONS):
        named = ", ".join(f"{name}=" for name in unknown)
        msg = (
            f"Neither a step nor a Prefect task takes {named}. Correct the name; fields of the provider's own request "
            "go into options=, as options={'temperature': 0}."
        )
        raise ConfigurationError(msg)
