"""Steps that share one due time."""

from collections.abc import Mapping, Sequence
from contextvars import ContextVar, Token
from datetime import datetime, timedelta
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

import msgspec

from prefect_llm_tiers.core.runs import step_run_id
from prefect_llm_tiers.core.tiers import Tier
from prefect_llm_tiers.due import Due, by, check_choice, check_due, check_on_time, resolved_due
from prefect_llm_tiers.engine.reporting import StepReport, report_of
from prefect_llm_tiers.errors import ConfigurationError
from prefect_llm_tiers.planning.plan import Plan
from prefect_llm_tiers.planning.priors import LiveRate

if TYPE_CHECKING:
    from prefect_llm_tiers.frames.reading import Rows
    from prefect_llm_tiers.step import LLMStep

__all__ = ["Chain", "ChainValue", "Outline", "by", "current_chain"]

_CURRENT: ContextVar["Chain | None"] = ContextVar("prefect_llm_tiers_chain", default=None)


class Outline(msgspec.Struct, frozen=True, kw_only=True):
    """A later step of a chain, as a plain value: what the plan of an earlier one needs to know of it.

    Attributes:
        reads: Columns that it reads; None if it takes the whole row.
        adds: The column that it adds.
        output_tokens: Expected tokens of an answer.

    Its own deadline is not among them: it counts from the moment its input is ready, and is planned then.
    """

    name: str
    provider: str
    model: str
    tiers: tuple[Tier, ...]
    after: tuple[str, ...]
    rate: LiveRate
    window: timedelta | None
    cancel: timedelta
    reads: tuple[str, ...] | None
    adds: str
    output_tokens: float


class ChainValue(msgspec.Struct, frozen=True, kw_only=True):
    """What one step needs of its chain; travels in the task's parameters, perhaps to another machine.

    Attributes:
        due: When the chain must be done.
        later: The steps that need this one, directly or not, in order.
    """

    due: datetime | None
    on_time: float | None
    infeasible: str | None
    on_miss: str | None
    min_saving_usd: Decimal | None
    later: tuple[Outline, ...]


class Chain:
    """Steps whose latencies add up, under one due time.

    Use it as a context manager in a flow; the steps called inside are planned together.

    Args:
        steps: The steps, in an order in which they can run.
        due: When the last one must be done: a span from the run's start, an aware instant, or `by(...)`.
        on_time: Chance of being on time that is asked for; overrides the steps'.
        after: Which step needs which; by default each needs those whose columns it reads.
        infeasible: `raise` or `best_effort`; overrides the steps'.
        on_miss: `finish` or `raise`; overrides the steps'.
        min_saving_usd: Least saving for which a cheap tier is used; overrides the steps'.

    Raises:
        ConfigurationError: The parameters contradict each other.
    """

    def __init__(
        self,
        *steps: "LLMStep",
        due: Due | None = None,
        on_time: float | None = None,
        after: "Mapping[LLMStep, Sequence[LLMStep]] | None" = None,
        infeasible: Literal["raise", "best_effort"] | None = None,
        on_miss: Literal["finish", "raise"] | None = None,
        min_saving_usd: Decimal | float | None = None,
    ) -> None:
        _check_steps(steps)
        check_due(due, "due")
        check_on_time(on_time)
        check_choice("infeasible", infeasible)
        check_choice("on_miss", on_miss)
        self.steps = steps
        self._due = due
        self._on_time = on_time
        self._infeasible = infeasible
        self._on_miss = on_miss
        self._min_saving_usd = None if min_saving_usd is None else Decimal(str(min_saving_usd))
        self._after = _edges(steps, after or {})
        self._due_at: datetime | None = None
        self._token: Token[Chain | None] | None = None
        self._runs: dict[str, LLMStep] = {}

    def __enter__(self) -> Self:
        if self._token is not None:
            msg = "The chain is entered already. Make another Chain for another pass."
            raise ConfigurationError(msg)
        self._due_at = self._resolved_due()
        self._token = _CURRENT.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            _CURRENT.reset(self._token)
            self._token = None

    def _resolved_due(self) -> datetime | None:
        return resolved_due(self._due, self.steps[0].provider_block().clock())

    def value_for(self, step: "LLMStep") -> ChainValue | None:
        """Return what a step needs of this chain; None for a step that is not in it."""
        if step.name not in self._after:
            return None
        needing = {step.name}
        for other in self.steps:
            if needing & set(self._after[other.name]):
                needing.add(other.name)
        return self._value(step, [other for other in self.steps if other.name in needing], self._due_at)

    def _value(self, first: "LLMStep", steps: "Sequence[LLMStep]", due: datetime | None) -> ChainValue:
        """Return the chain as `first` sees it: some of its steps, and of what these need no others."""
        names = {step.name for step in steps}
        return ChainValue(
            due=due,
            on_time=self._on_time,
            infeasible=self._infeasible,
            on_miss=self._on_miss,
            min_saving_usd=self._min_saving_usd,
            later=tuple(
                step.outline(after=tuple(name for name in self._after[step.name] if name in names))
                for step in steps
                if step.name != first.name
            ),
        )

    def plan(self, rows: "Rows") -> Plan:
        """Return the plan for the whole chain over some rows, without asking or paying for anything.

        Steps after the first are sized by what their predecessors are expected to add.

        Raises:
            LLMTiersError: See `errors`.
        """
        due = self._due_at if self._token is not None else self._resolved_due()
        first = self.steps[0]
        return first.plan_in(self._value(first, self.steps, due), rows)

    def entered(self, scope: str, step: "LLMStep", run_key: str) -> None:
        """Note that a step run of this chain begins."""
        self._runs[step_run_id(scope, step.name, run_key)] = step

    def report(self) -> list[StepReport]:
        """Return what each step run of this chain came to so far, in the order of the calls.

        Steps that are called outside a flow are not among them: their runs have no name to look them up by.
        """
        found = (report_of(step.open_ledger(), run_id) for run_id, step in self._runs.items())
        return [report for report in found if report is not None]


def _check_steps(steps: "Sequence[LLMStep]") -> None:
    if not steps:
        msg = "The chain holds no step. Name those that share the due time, in an order in which they can run."
        raise ConfigurationError(msg)
    for step in steps:
        if not hasattr(step, "outline"):
            msg = f"A chain takes steps made with @llm_step, not {type(step).__name__}. Leave other tasks out of it."
            raise ConfigurationError(msg)
    names = [step.name for step in steps]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        msg = (
            f"The chain holds {', '.join(map(repr, repeated))} more than once. Give each its own name with "
            ".with_options(name=...)."
        )
        raise ConfigurationError(msg)


def _edges(steps: "Sequence[LLMStep]", given: "Mapping[LLMStep, Sequence[LLMStep]]") -> dict[str, tuple[str, ...]]:
    """Return for each step the names of those it needs, which all stand before it.

    Steps are known by their names: a copy made with `.with_options` is the same one here.
    """
    needs = {step.name: [needed.name for needed in needed_steps] for step, needed_steps in given.items()}
    order = {step.name: number for number, step in enumerate(steps)}
    if absent := [name for name in needs if name not in order]:
        msg = f"after= names {', '.join(map(repr, absent))}, not in the chain. Add it, or leave it out."
        raise ConfigurationError(msg)
    edges: dict[str, tuple[str, ...]] = {}
    for number, step in enumerate(steps):
        names = needs.get(step.name)
        if names is None:
            names = [earlier.name for earlier in steps[:number] if step.reads_any(earlier.adds)]
        for name in names:
            if name not in order:
                msg = (
                    f"after= says that {step.name!r} needs {name!r}, which is not in the chain. Add it, or leave "
                    "it out."
                )
                raise ConfigurationError(msg)
            if order[name] >= number:
                msg = (
                    f"after= says that {step.name!r} needs {name!r}, which does not come before it. Reorder the chain."
                )
                raise ConfigurationError(msg)
        edges[step.name] = tuple(names)
    return edges


def current_chain() -> Chain | None:
    """Return the chain that the calling flow is in."""
    return _CURRENT.get()
