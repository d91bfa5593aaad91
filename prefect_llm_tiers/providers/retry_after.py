"""How long a provider asks to wait: from headers, and, where a gateway dropped those, from words."""

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

__all__ = ["retry_after_s"]


def retry_after_s(headers: Mapping[str, str], message: str = "") -> float | None:
    """Return the seconds after which the provider will take the call, None where it does not say.

    Reads `retry-after-ms`, `retry-after` in seconds or as an HTTP date, and, where both are missing,
    OpenAI's `x-ratelimit-reset-*` of the limits that are used up, and then the message. A date is counted from the
    reply's own `date` header, so that no clock is read here and none has to agree with the provider's.

    Args:
        headers: Headers of the reply, keys in lower case.
        message: Its error's message, for gateways that drop headers.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    text = headers.get("retry-after")
    if text is not None:
        seconds = _number(text)
        if seconds is not None:
            return seconds
        until, now = _date(text), _date(headers.get("date"))
        return max(0.0, (until - now).total_seconds()) if until and now else None
    waits = [
        _go_duration(headers.get(f"x-ratelimit-reset-{limit}"))
        for limit in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{limit}") == "0"
    ]
    return max((wait for wait in waits if wait is not None), default=_told(message))


def _told(message: str) -> float | None:
    """Return the seconds that a message tells; None where it tells none."""
    said = _TRY_AGAIN.search(message)
    if said is None:
        return None
    return _go_duration(said.group(1)) if said.group(1) else float(said.group(2))


def _number(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return max(0.0, value) if math.isfinite(value) else None


def _date(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        value = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return value if value.tzinfo else value.replace(tzinfo=UTC)


_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
# As OpenAI says "Please try again in 6m0s." and Azure "Please retry after 6 seconds."
_TRY_AGAIN = re.compile(
    r"\b(?:try again|retry) (?:in|after) (?:((?:\d{1,6}(?:\.\d{1,6})?(?:ms|s|m|h|d))+)\b|(\d{1,6}) seconds?\b)",
    re.IGNORECASE,
)
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def _go_duration(text: str | None) -> float | None:
    """Read OpenAI's `6m0s`, `20ms` or `1h2m3.5s`."""
    if text is None or not _DURATION.fullmatch(text):
        return None
    return sum(float(amount) * _UNIT_S[unit] for amount, unit in _DURATION_PART.findall(text))
