"""Result files as they come on a bad day: lines that are missing, doubled, cut, or of another kind than promised."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import orjson

from prefect_llm_tiers.simulator.batches import Batch, Row, Spoils
from prefect_llm_tiers.simulator.draws import Draws
from prefect_llm_tiers.simulator.world import World

__all__ = ["spoiled"]

_ANY_LINE = (
    "line_missing",
    "line_twice",
    "line_conflict",
    "line_unknown",
    "line_cut",
    "line_no_json",
    "line_wrong_types",
)
_ANSWERED_LINE = (
    "line_null_body",
    "line_status_0",
    "line_absurd_usage",
    "line_u2028",
    "line_surrogate",
    "line_nul",
    "line_escaped_nul",
    "line_bad_utf8",
    "line_blank",
)
_FILE = ("file_bom", "file_crlf", "file_truncated")

_MARK = "@@the-fault-goes-here@@"

_IN_PLACE_OF_MARK = {
    "line_u2028": "\u2028".encode(),
    "line_surrogate": rb"\ud83d",
    "line_nul": b"\x00",
    "line_escaped_nul": rb"\u0000",
    "line_bad_utf8": b"\xff\xfe",
}

_ABSURD: tuple[Any, ...] = (-7, 1e30, "many", None, 2**63, [1], 0.5)

Anatomy = Callable[[dict[str, Any]], tuple[dict[str, Any], str]]
"""Returns what holds the answer in a line of a dialect, and the name of the answer in it."""


def spoiled(
    world: World, batch: Batch, file: str, lines: Iterator[tuple[Row, bytes]], anatomy: Anatomy
) -> Iterator[bytes]:
    """Write a result file with the faults that strike it: the same ones whenever it is written.

    Args:
        world: The world.
        batch: Whose results.
        file: Which of its files.
        lines: Its rows with their lines as they should be.
        anatomy: Where the answer stands in a line.
    """
    if not world.draws.any_of(*_ANY_LINE, *_ANSWERED_LINE, *_FILE):
        return (line for _, line in lines)
    kept = list(lines)
    with world.lock:
        spoils = batch.spoils.get(file)
        if spoils is None:
            spoils = batch.spoils[file] = _draw(world.draws, batch, file, [row for row, _ in kept])
    return _as_file(_spoiled_lines(world.draws, batch, kept, spoils, anatomy), spoils)


def _draw(draws: Draws, batch: Batch, file: str, rows: list[Row]) -> Spoils:
    found: dict[str, str] = {}
    key = batch.fate.key
    # In an order that custom_ids have no part in, because they may differ from run to run.
    for row in sorted(rows, key=lambda row: (row.digest, row.custom_id)):
        names = _ANY_LINE if row.composed is None else _ANY_LINE + _ANSWERED_LINE
        if fault := draws.first_of(names, key, row.digest):
            found[row.custom_id] = fault
    whole = tuple(name for name in _FILE if rows and draws.strikes(name, key, file))
    return Spoils(lines=found, whole=whole)


def _spoiled_lines(
    draws: Draws, batch: Batch, lines: list[tuple[Row, bytes]], spoils: Spoils, anatomy: Anatomy
) -> Iterator[bytes]:
    late: list[bytes] = []  # a second line for a row comes long after the first
    for row, line in lines:
        match spoils.lines.get(row.custom_id):
            case None:
                yield line
            case "line_missing":
                pass
            case "line_twice":
                yield line
                late.append(line)
            case "line_conflict":
                yield line
                late.append(_conflicting(line, anatomy, draws.fraction("conflict", batch.fate.key, row.digest)))
            case "line_unknown":
                yield line
                stranger = hashlib.sha256(row.digest.encode()).hexdigest()[:40]
                late.append(_line(orjson.loads(line) | {"custom_id": f"stranger-{stranger}"}))
            case fault:
                yield _broken(fault, row, line, anatomy, draws.fraction("broken", batch.fate.key, row.digest))
    yield from late


def _as_file(lines: Iterator[bytes], spoils: Spoils) -> Iterator[bytes]:
    if "file_bom" in spoils.whole:
        yield b"\xef\xbb\xbf"
    end = b"\r\n" if "file_crlf" in spoils.whole else b"\n"
    before: bytes | None = None
    for line in lines:
        if before is not None:
            yield before
        before = line[:-1] + end if line.endswith(b"\n") else line
    if before is not None:
        yield before[: max(1, len(before) // 2)] if "file_truncated" in spoils.whole else before


def _conflicting(line: bytes, anatomy: Anatomy, fraction: float) -> bytes:
    """Return another line for the same row: another answer, or none."""
    decoded = orjson.loads(line)
    holder, name = anatomy(decoded)
    if fraction < 0.5 and _put(holder.get(name), "Another answer than before."):
        return _line(decoded)
    if "result" in decoded:
        decoded["result"] = {"type": "expired"}
    else:
        decoded |= {"response": None, "error": {"code": "batch_expired", "message": "This request expired."}}
    return _line(decoded)


def _broken(fault: str, row: Row, line: bytes, anatomy: Anatomy, fraction: float) -> bytes:
    match fault:
        case "line_cut":
            return line[: len(line) // 2] + b"\n"
        case "line_no_json":
            return b"upstream connect error or disconnect/reset before headers\n"
        case "line_blank":
            return b"\n  \n" + line + b"\n"
        case "line_wrong_types":
            return _wrong_types(line, anatomy, fraction)
        case _:
            return _altered(fault, row, line, anatomy, fraction)


def _altered(fault: str, row: Row, line: bytes, anatomy: Anatomy, fraction: float) -> bytes:
    """Return the line of an answer that says something else, or says it in bytes that it should not."""
    decoded = orjson.loads(line)
    holder, name = anatomy(decoded)
    answer = holder[name]
    match fault:
        case "line_null_body":
            holder[name] = None
        case "line_status_0":
            if "result" in decoded:
                decoded["result"] = {"type": ""}
            else:
                holder |= {"status_code": 0, name: None}
        case "line_absurd_usage":
            usage = answer.get("usage")
            for field in usage if isinstance(usage, dict) else ():
                if field.endswith("tokens"):
                    usage[field] = _ABSURD[int(fraction * len(_ABSURD))]
        case _:
            # What must stay valid JSON is not touched: the fault then stands beside it.
            plain = row.asked is not None and row.asked.schema is None
            if not (plain and _put(answer, _MARK, append=True)):
                answer["id"] = _MARK
            return _line(decoded).replace(_MARK.encode(), _IN_PLACE_OF_MARK[fault])
    return _line(decoded)


def _wrong_types(line: bytes, anatomy: Anatomy, fraction: float) -> bytes:
    decoded = orjson.loads(line)
    holder, name = anatomy(decoded)
    variants: tuple[Callable[[], Any], ...] = (
        lambda: decoded | {"custom_id": 17},
        lambda: decoded | {"response": ["?"], "result": ["?"]},
        lambda: [decoded],
        lambda: None,
        lambda: _with(decoded, holder, name, "a string"),
        lambda: _with(decoded, holder, name, [1, 2]),
        lambda: _with(decoded, holder, name, {"output": 5, "choices": 5, "content": 5, "data": 5, "usage": 5}),
    )
    return _line(variants[int(fraction * len(variants))]())


def _with(line: dict[str, Any], holder: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    holder[name] = value
    return line


def _put(answer: Any, text: str, *, append: bool = False) -> bool:
    """Change the first text of an answer; tell whether there was one."""
    if isinstance(answer, list):
        return any(_put(part, text, append=append) for part in answer)
    if not isinstance(answer, dict):
        return False
    for name in ("text", "content"):
        if isinstance(answer.get(name), str):
            answer[name] = answer[name] + text if append else text
            return True
    return any(_put(part, text, append=append) for name, part in answer.items() if name != "usage")


def _line(decoded: Any) -> bytes:
    return msgspec.json.encode(decoded) + b"\n"
