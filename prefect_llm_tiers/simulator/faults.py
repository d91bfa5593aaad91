"""What may go wrong at the simulated provider, each fault by its name."""

import difflib
import math
from typing import Any

import msgspec

__all__ = ["Chance", "Faults", "Span", "check_at_least", "check_chance", "check_span"]

Chance = float
"""How likely something is, from 0 to 1."""

Span = tuple[float, float]
"""A range of seconds that a time is drawn from, evenly."""


def check_chance(name: str, value: float) -> None:
    """Check a chance.

    Raises:
        ValueError: It is not from 0 to 1.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value:g}; a chance is from 0 to 1")


def check_span(name: str, value: Span) -> None:
    """Check a range of seconds.

    Raises:
        ValueError: It is none.
    """
    if len(value) != 2 or not 0 <= value[0] <= value[1] < math.inf:
        shown = ", ".join(f"{each:g}" for each in value)
        raise ValueError(f"{name} is [{shown}]; give two numbers of seconds, 0 or more, the smaller one first")


def check_at_least(name: str, value: float, least: float, *, above: bool = False) -> None:
    """Check a number from below.

    Raises:
        ValueError: It is too small, or no finite number.
    """
    if not (least < value if above else least <= value) or value == math.inf:
        raise ValueError(f"{name} is {value:g}; it must be {'above' if above else 'at least'} {least:g}, and finite")


class Faults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The chance of each fault, by name; all are 0 at first.

    A draw is keyed by the seed and by what the fault strikes (the rows of a batch, a body, the n-th look
    at a batch), never by order of arrival. A test that wants a fault at one certain moment names it in
    `only`: the occasions that it strikes, counted from 0 in the order in which they come.

    Every field is told in `docs/simulator.md`, and each fault that struck is counted under its name in the
    account. Names that end in `_s` are the ranges of seconds that faults take.

    Attributes:
        only: Occasions that a fault strikes, and no others, in the place of its chance.
    """

    only: dict[str, tuple[int, ...]] = {}

    # Uploads
    upload_502_taken: Chance = 0.0
    upload_502_untaken: Chance = 0.0

    # Creation of a batch; at most one of these strikes one call, the first in this order.
    create_502_untaken: Chance = 0.0
    create_502_taken: Chance = 0.0
    create_stalls: Chance = 0.0
    create_lands_late: Chance = 0.0
    create_502_lands_late: Chance = 0.0
    create_twice: Chance = 0.0
    create_late_s: Span = (90.0, 480.0)

    # What can be seen of a batch that was taken
    batch_hidden: Chance = 0.0
    batch_hidden_s: Span = (60.0, 300.0)
    batch_404: Chance = 0.0
    batch_404_s: Span = (10.0, 90.0)
    list_lag: Chance = 0.0
    list_lag_s: Span = (60.0, 300.0)
    list_503: Chance = 0.0
    list_truncated: Chance = 0.0
    list_endless: Chance = 0.0
    list_spell_s: float = 900.0
    retrieve_500: Chance = 0.0

    # How a batch ends
    validation_fails: Chance = 0.0
    token_limit: Chance = 0.0
    batch_expires: Chance = 0.0
    no_output: Chance = 0.0
    long_finalizing: Chance = 0.0
    long_finalizing_s: Span = (1800.0, 7200.0)
    output_late: Chance = 0.0
    output_late_s: Span = (30.0, 900.0)
    row_invalid: Chance = 0.0

    # Cancelling
    cancel_refused: Chance = 0.0
    cancel_502_taken: Chance = 0.0
    cancel_late: Chance = 0.0
    cancel_late_s: Span = (60.0, 300.0)
    cancel_slow: Chance = 0.0
    cancel_slow_s: Span = (600.0, 1800.0)
    cancel_too_late: Chance = 0.0

    # Reading results
    download_500: Chance = 0.0
    download_reset: Chance = 0.0
    download_stalls: Chance = 0.0

    # Lines of results; at most one of these strikes one line, the first in this order.
    line_missing: Chance = 0.0
    line_twice: Chance = 0.0
    line_conflict: Chance = 0.0
    line_unknown: Chance = 0.0
    line_cut: Chance = 0.0
    line_no_json: Chance = 0.0
    line_wrong_types: Chance = 0.0
    line_null_body: Chance = 0.0
    line_status_0: Chance = 0.0
    line_absurd_usage: Chance = 0.0
    line_u2028: Chance = 0.0
    line_surrogate: Chance = 0.0
    line_nul: Chance = 0.0
    line_escaped_nul: Chance = 0.0
    line_bad_utf8: Chance = 0.0
    line_blank: Chance = 0.0

    # Result files as a whole
    file_bom: Chance = 0.0
    file_crlf: Chance = 0.0
    file_truncated: Chance = 0.0

    # Live calls; at most one of these strikes one call, the first in this order.
    live_limited: Chance = 0.0
    live_quota: Chance = 0.0
    live_capacity: Chance = 0.0
    live_529: Chance = 0.0
    live_498: Chance = 0.0
    live_5xx: Chance = 0.0
    live_stalls: Chance = 0.0
    live_reset: Chance = 0.0
    live_502_billed: Chance = 0.0
    live_malformed: Chance = 0.0

    stall_s: float = 3600.0

    def __post_init__(self) -> None:
        """Check every chance and range, so that a slip is told where it was made.

        Raises:
            ValueError: A number is out of its range, or `only` names no fault.
        """
        for name in _NAMES:
            check_chance(name, getattr(self, name))
        for name in _SPANS:
            check_span(name, getattr(self, name))
        check_at_least("list_spell_s", self.list_spell_s, 0, above=True)
        check_at_least("stall_s", self.stall_s, 0)
        for name, occasions in self.only.items():
            if name not in _NAMES:
                near = difflib.get_close_matches(name, _NAMES, n=1)
                raise ValueError(f"only names '{name}', which is no fault" + (f"; '{near[0]}' is" if near else ""))
            if isinstance(occasions, str) or any(occasion < 0 for occasion in occasions):
                raise ValueError(f"only.{name} is {occasions!r}; give a list of occasions, counted from 0")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of all faults."""
        return _NAMES

    @classmethod
    def all(cls, rate: float) -> "Faults":
        """Return every fault at the same chance."""
        rates: dict[str, Any] = dict.fromkeys(_NAMES, rate)
        return cls(**rates)


_NUMBERS = ("only", "list_spell_s", "stall_s")
_SPANS = tuple(name for name in Faults.__struct_fields__ if name.endswith("_s") and name not in _NUMBERS)
_NAMES = tuple(name for name in Faults.__struct_fields__ if name not in _SPANS + _NUMBERS)
