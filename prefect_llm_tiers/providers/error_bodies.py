"""What the body of an error says, whatever its shape: JSON of either dialect, a gateway's, FastAPI's, HTML, nothing."""

import re
from typing import Any, NamedTuple

from prefect_llm_tiers.providers.decoding import decode_any

__all__ = ["Said", "clean_code", "read_error"]

_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_.]{0,63}")
_READ_BYTES = 65_536


class Said(NamedTuple):
    """What an error says.

    Attributes:
        codes: Its code and its type, where they are identifiers.
        message: Its words, which may repeat a prompt or a key: to be searched, and never to be shown.
        param: The parameter that it is about.
        status: The HTTP status that stands in the place of a code.
    """

    codes: tuple[str, ...] = ()
    message: str = ""
    param: str | None = None
    status: int | None = None


def clean_code(value: object) -> str | None:
    """Return a provider's code if it can be one, None otherwise.

    Codes go into logs and the ledger. What has another shape than an identifier may be text that echoes
    a prompt or a key, and is dropped.
    """
    if isinstance(value, str) and _CODE.fullmatch(value):
        return value
    return None


def read_error(body: bytes) -> Said:
    """Return what an error says."""
    value = decode_any(body[:_READ_BYTES])
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, dict):
        return Said(message=value if isinstance(value, str) else body[:4096].decode("utf-8", "replace"))
    error: Any = value.get("error", value)
    if isinstance(error, str):
        # {"error": "text"}; some hosts put the code beside it, or in its place.
        found = (clean_code(value.get("code")), clean_code(error))
        return Said(
            codes=tuple(code for code in found if code),
            message=f"{error} {value.get('message') or ''}",
            status=_status(value.get("code")),
        )
    if not isinstance(error, dict):
        return Said()
    found = (clean_code(error.get("code")), clean_code(error.get("type")))
    detail = error.get("detail")
    parts = (error.get("message"), detail)
    param = error.get("param")
    return Said(
        codes=tuple(code for code in found if code and code != "error"),
        message=" ".join(part for part in parts if isinstance(part, str)),
        param=param if isinstance(param, str) else _field(detail),
        status=_status(error.get("code")),
    )


def _status(code: object) -> int | None:
    """Return the HTTP status that stands where a code should, as `429` or `"429"`."""
    if isinstance(code, str) and code.isascii() and code.isdigit() and len(code) == len("429"):
        code = int(code)
    return code if isinstance(code, int) and 400 <= code <= 599 else None


def _field(detail: object) -> str | None:
    """Return the field that FastAPI's validation refuses: `[{"loc": ["body", "service_tier"], ...}]`."""
    first = detail[0] if isinstance(detail, list) and detail else None
    place = first.get("loc") if isinstance(first, dict) else None
    last = place[-1] if isinstance(place, list) and place else None
    return last if isinstance(last, str) else None
