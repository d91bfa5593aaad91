"""Which columns a step reads and adds, told by its declaration. Knows no polars: steps are declared without it."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prefect_llm_tiers.errors import ConfigurationError

__all__ = ["WHOLE_ROW", "Reading", "added_columns", "reading_of"]

WHOLE_ROW = "row"
"""A parameter of this name receives the row as a dict."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Which columns a prompt function reads, and which values are the same for every row.

    Attributes:
        columns: Column by parameter, in the order of the parameters.
        constants: Values of the parameters that have defaults or were set by the call.
        whole_row: Whether the function takes the row as a dict.
    """

    columns: Mapping[str, str]
    constants: Mapping[str, Any]
    whole_row: bool


def reading_of(
    prompt: Callable[..., Any], *, columns: Mapping[str, str], constants: Mapping[str, Any], step: str
) -> Reading:
    """Return what a prompt function reads.

    Args:
        prompt: The function; its parameters without a default are columns.
        columns: Columns whose names are not the parameters'.
        constants: Values that the call sets.
        step: The step's name, for errors.

    Raises:
        ConfigurationError: The function is async or a generator, its parameters do not name columns, or the
            call or `columns` names something that it does not take.
    """
    if inspect.iscoroutinefunction(prompt) or inspect.isgeneratorfunction(prompt):
        msg = (
            f"The prompt function of step {step!r} is async or yields. It only builds the prompt of one row, so make "
            "it a plain function that returns it; the step asks about many rows at a time by itself."
        )
        raise ConfigurationError(msg)
    parameters = inspect.signature(prompt).parameters
    for parameter in parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            msg = (
                f"The prompt function of step {step!r} takes {str(parameter)!r}. Name each column that it reads as a "
                "parameter of its own, or take the whole row in a parameter 'row'."
            )
            raise ConfigurationError(msg)
    unknown = sorted((set(constants) | set(columns)) - set(parameters))
    if unknown:
        has = f"it has {', '.join(map(repr, parameters))}" if parameters else "it has none"
        msg = (
            f"The prompt function of step {step!r} has no parameter {', '.join(map(repr, unknown))}; {has}. "
            "Correct the call or columns=."
        )
        raise ConfigurationError(msg)
    read: dict[str, str] = {}
    fixed: dict[str, Any] = {}
    whole_row = False
    for name, parameter in parameters.items():
        if name in constants:
            fixed[name] = constants[name]
        elif name in columns:
            read[name] = columns[name]
        elif parameter.default is not parameter.empty:
            fixed[name] = parameter.default
        elif name == WHOLE_ROW:
            whole_row = True
        else:
            read[name] = name
    return Reading(columns=read, constants=fixed, whole_row=whole_row)


def added_columns(column: str, *, meta: bool) -> list[str]:
    """Return the names of the columns that a step adds."""
    return [column, f"{column}_error", *([f"{column}_meta"] if meta else [])]
