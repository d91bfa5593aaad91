"""What may be wrong with a result file and its lines."""

import json
from collections import Counter
from typing import Any

import msgspec
import pytest

from prefect_llm_tiers.simulator.faults import Faults
from prefect_llm_tiers.simulator.settings import BatchLaw, WorldSettings
from tests.unit.simulator.box import Box
from tests.unit.simulator.test_creation_faults import DIALECTS, create
from tests.unit.simulator.test_ending_faults import download, later

HOUR = BatchLaw(median_s=3600, sigma=0, stuck_share=0)
ROWS = 60


def written(dialect: str, seed: int = 0, rows: int = ROWS, **rates: Any) -> tuple[bytes, dict[str, int]]:
    """Return the results of a batch with these faults, read twice and found equal, and what struck."""
    box = Box(WorldSettings(seed=seed, batch=HOUR, faults=Faults(**rates)))

    async def live() -> bytes:
        batch = await later(box, await create(box, dialect, rows=rows), hours=2)
        first = await download(box, batch)
        assert first == await download(box, batch)
        return first

    return box.run(live()), box.simulation.account().faults


def read(content: bytes) -> list[Any]:
    """Return the lines that are JSON objects, however they are separated."""
    found = []
    for line in content.split(b"\n"):
        try:
            decoded = json.loads(line)
        except ValueError:
            continue
        if isinstance(decoded, dict):
            found.append(decoded)
    return found


def ids(content: bytes) -> Counter[Any]:
    """Return how often each custom_id stands in a result file."""
    return Counter(line.get("custom_id") for line in read(content))


def answer(line: dict[str, Any]) -> Any:
    """Return the answer in a line of either dialect."""
    return line["result"]["message"] if "result" in line else line["response"]["body"]


ALL = {f"row-{number}" for number in range(ROWS)}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_without_faults_a_file_is_whole(dialect: str) -> None:
    """One line a row, each of them JSON with an answer, and no fault is counted."""
    content, struck = written(dialect)
    assert ids(content) == Counter(ALL)
    assert all(answer(line)["usage"] for line in read(content))
    assert struck == {}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_lines_are_missing(dialect: str) -> None:
    """Some rows have no line, though they are done and billed."""
    content, struck = written(dialect, line_missing=0.3)
    assert ids(content) <= Counter(ALL)
    assert len(ids(content)) == ROWS - struck["line_missing"] < ROWS


@pytest.mark.parametrize("dialect", DIALECTS)
def test_lines_come_twice(dialect: str) -> None:
    """Some rows have two identical lines, the second one far from the first."""
    content, struck = written(dialect, line_twice=0.3)
    lines = content.splitlines()
    doubled = {line for line, times in Counter(lines).items() if times == 2}
    assert (len(doubled), len(lines)) == (struck["line_twice"], ROWS + struck["line_twice"])
    assert struck["line_twice"] > 0
    assert set(ids(content)) == ALL


@pytest.mark.parametrize("dialect", DIALECTS)
def test_lines_contradict_each_other(dialect: str) -> None:
    """Some rows have two lines that say different things: another answer, or none at all."""
    content, struck = written(dialect, line_conflict=0.5)
    by_id: dict[str, list[dict[str, Any]]] = {}
    for line in read(content):
        by_id.setdefault(line["custom_id"], []).append(line)
    pairs = [lines for lines in by_id.values() if len(lines) == 2]
    assert len(pairs) == struck["line_conflict"] > 0
    assert all(first != second for first, second in pairs)
    answered = [bool(second.get("response") or second.get("result", {}).get("message")) for _, second in pairs]
    assert set(answered) == {True, False}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_strangers_come_along(dialect: str) -> None:
    """Every row has its line, and there are lines of rows that nobody sent."""
    content, struck = written(dialect, line_unknown=0.3)
    strangers = set(ids(content)) - ALL
    assert len(strangers) == struck["line_unknown"] > 0
    assert set(ids(content)) >= ALL


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("fault", ["line_cut", "line_no_json", "line_nul"])
def test_lines_are_no_json(dialect: str, fault: str) -> None:
    """A struck line cannot be read; it stays one line, and all others are whole."""
    rates: dict[str, Any] = {fault: 0.3}
    content, struck = written(dialect, **rates)
    assert len(content.splitlines()) == ROWS
    assert len(ids(content)) == ROWS - struck[fault] < ROWS
    assert (fault == "line_nul") == (b"\x00" in content)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_lines_are_no_utf_8(dialect: str) -> None:
    """A struck line holds bytes that no text has."""
    content, struck = written(dialect, line_bad_utf8=0.3)
    broken = []
    for line in content.splitlines():
        try:
            line.decode()
        except UnicodeDecodeError:
            broken.append(line)
    assert len(broken) == struck["line_bad_utf8"] > 0


@pytest.mark.parametrize("dialect", DIALECTS)
def test_lines_hold_other_types_than_promised(dialect: str) -> None:
    """A struck line is JSON of the wrong shape, each at another place."""
    content, struck = written(dialect, line_wrong_types=1.0)
    assert struck == {"line_wrong_types": ROWS}
    shapes = Counter(type(json.loads(line)).__name__ for line in content.splitlines())
    assert set(shapes) == {"dict", "list", "NoneType"}
    assert 17 in ids(content)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_bodies_are_null(dialect: str) -> None:
    """A struck line says that all went well and holds nothing."""
    content, struck = written(dialect, line_null_body=0.3)
    assert sum(answer(line) is None for line in read(content)) == struck["line_null_body"] > 0


def test_a_status_is_0() -> None:
    """Counts promise an answer, and the line has status 0 and no body."""
    content, struck = written("openai", line_status_0=0.3)
    statuses = Counter(line["response"]["status_code"] for line in read(content))
    assert statuses == {200: ROWS - struck["line_status_0"], 0: struck["line_status_0"]}


def test_a_result_is_of_no_known_type() -> None:
    """Anthropic has no status; there the type is empty."""
    content, struck = written("anthropic", line_status_0=0.3)
    types = Counter(line["result"]["type"] for line in read(content))
    assert types == {"succeeded": ROWS - struck["line_status_0"], "": struck["line_status_0"]}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_usage_is_absurd(dialect: str) -> None:
    """Tokens are negative, huge, fractions, strings, lists or null."""
    content, struck = written(dialect, line_absurd_usage=1.0)
    seen = {json.dumps(answer(line)["usage"]["output_tokens"]) for line in read(content)}
    assert seen == {"-7", "1e+30", '"many"', "null", str(2**63), "[1]", "0.5"}
    assert struck == {"line_absurd_usage": ROWS}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_line_separator_stands_raw_in_a_text(dialect: str) -> None:
    """U+2028 unescaped is valid JSON, and no line end to who splits at newlines only."""
    content, struck = written(dialect, line_u2028=0.3)
    assert ids(content) == Counter(ALL)
    assert content.count("\u2028".encode()) == struck["line_u2028"] > 0
    assert len(content.decode().splitlines()) > ROWS


@pytest.mark.parametrize("dialect", DIALECTS)
def test_half_a_surrogate_stands_escaped_in_a_text(dialect: str) -> None:
    """A strict reader cannot read the line; a lenient one gets text that cannot be encoded."""
    content, struck = written(dialect, line_surrogate=0.3)
    unencodable = 0
    for line in content.splitlines():
        try:
            msgspec.json.encode(json.loads(line))
        except UnicodeEncodeError:
            unencodable += 1
    assert unencodable == struck["line_surrogate"] > 0


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_nul_stands_escaped_in_a_text(dialect: str) -> None:
    """The line is valid, and its text holds a character that some databases refuse."""
    content, struck = written(dialect, line_escaped_nul=0.3)
    assert ids(content) == Counter(ALL)
    assert content.count(rb"\u0000") == struck["line_escaped_nul"] > 0
    assert b"\x00" not in content


@pytest.mark.parametrize("dialect", DIALECTS)
def test_blank_lines_stand_between(dialect: str) -> None:
    """Empty lines and lines of spaces stand for nothing."""
    content, struck = written(dialect, line_blank=0.3)
    assert ids(content) == Counter(ALL)
    assert sum(not line.strip() for line in content.splitlines()) == 3 * struck["line_blank"] > 0


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_file_is_strange_as_a_whole(dialect: str) -> None:
    """A byte order mark before the first line, CRLF after each, and a last line that is cut short."""
    plain, _ = written(dialect)
    content, struck = written(dialect, file_bom=1, file_crlf=1, file_truncated=1)
    assert struck == {"file_bom": 1, "file_crlf": 1, "file_truncated": 1}
    assert content.startswith(b"\xef\xbb\xbf")
    lines = content[3:].split(b"\r\n")
    whole = plain.splitlines()
    assert lines[:-1] == whole[:-1]
    assert whole[-1].startswith(lines[-1])
    assert len(lines[-1]) < len(whole[-1])


@pytest.mark.parametrize("dialect", DIALECTS)
def test_everything_at_once_is_the_same_every_time(dialect: str) -> None:
    """All faults of lines together: the same file from the same seed, another one from another."""
    rates: dict[str, Any] = {name: 0.03 for name in Faults.names() if name.startswith(("line_", "file_"))}
    content, struck = written(dialect, seed=3, rows=400, **rates)
    assert (content, struck) == written(dialect, seed=3, rows=400, **rates)
    assert struck != written(dialect, seed=4, rows=400, **rates)[1]
    assert len(struck) > 12


def test_the_error_file_is_struck_too() -> None:
    """Lines of rows that failed may be missing or broken like any other."""
    box = Box(WorldSettings(batch=HOUR, batch_row_error_rate=1.0, faults=Faults(line_missing=0.5)))

    async def live() -> bytes:
        batch = await later(box, await create(box, "openai", rows=ROWS), hours=2)
        assert batch.output_file_id is None
        return (await box.openai().files.content(batch.error_file_id)).content

    missing = ROWS - len(box.run(live()).splitlines())
    assert missing == box.simulation.account().faults["line_missing"] > 0
