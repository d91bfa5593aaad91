"""Prompts on their way through Prefect: as values that it neither looks into nor shows."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture

__all__ = ["Held", "Prompt", "held", "released"]

Prompt = str | Sequence[Mapping[str, Any]] | Mapping[str, Any]
"""A text, messages with `role` and `content`, or the body of a request."""


class Held(msgspec.Struct, frozen=True):
    """A prompt or several as one plain value.

    Prefect would look through a list for futures, a second per 100,000 messages, and `repr` would show it.
    """

    value: Any

    def __repr__(self) -> str:
        return "Held(...)"


def held(value: Any) -> Any:
    """Return prompts as a value that Prefect does not look into, unless futures are among them."""
    awaited = isinstance(value, PrefectFuture | State) or (
        isinstance(value, list | tuple) and any(isinstance(one, PrefectFuture | State) for one in value)
    )
    return value if awaited else Held(value)


def released(value: Any) -> Any:
    """Return what `held` was given, or what Prefect made of futures."""
    return value.value if isinstance(value, Held) else value
