"""Result files with something wrong about them: what a seed makes of a real one, and which rows it left alone."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["File", "Line", "mutated"]

ODD_BYTES = (
    b"\x00",
    b"\xff",
    b"\xed\xa0\xbd",
    b"\\ud83d",
    b"\\u0000",
    "\u2028".encode(),
    "\ufeff".encode(),
    b"\x0b",
    b"\r",
    b"\n",
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[[[[",
    b"NaN",
    b"1e999",
    b"9" * 5000,
)
NOISE = (
    b"null",
    b"[]",
    b"{}",
    b"3",
    b'"',
    b"[" * 5000,
    b'{"a":' * 5000,
    b"\x00\x00",
    b"\xff\xfe",
    b"<html>Bad gateway</html>",
    b'{"custom_id":"\\ud800"}',
    b'{"custom_id":5,"response":{}}',
    b'{"custom_id":"request-7","response":null,"error":{"code":"batch_expired"}}',
    b'{"custom_id":"' + b"k" * 43 + b"-" + b"t" * 20 + b'","result":{"type":"expired"}}',
)
BLANK = (b"", b"  \t", b"\r", "\ufeff".encode())
ODD_VALUES: tuple[Any, ...] = (None, True, -1, 0, 1e30, -0.5, 2**63, 10**30, "", "text", [], [None], {}, {"a": []})


@dataclass
class Line:
    """One line of a file.

    Attributes:
        text: Its bytes, without its end.
        key: Whose row it is; None for one that was put in.
        whole: Whether it still says what it said.
        end: What stands behind it.
    """

    text: bytes
    key: str | None
    whole: bool = True
    end: bytes = b"\n"


@dataclass
class File:
    """A result file.

    Attributes:
        lines: Its lines.
        changed: Keys of rows of which it may say something else than before.
        cut_at: Share of its bytes that came.
    """

    lines: list[Line]
    changed: set[str] = field(default_factory=set)
    cut_at: float = 1.0

    def encoded(self) -> bytes:
        """Return the file's bytes, and note the rows that lost theirs to a cut or to a neighbour."""
        text = b"".join(line.text + line.end for line in self.lines)
        length = int(len(text) * self.cut_at)
        at = 0
        for line, after in zip(self.lines, [*self.lines[1:], None], strict=True):
            at += len(line.text)
            cut = at > length
            at += len(line.end)
            glued = after is not None and b"\n" not in line.end
            broken = not line.whole or cut or (after is not None and not after.whole)
            if cut or (glued and broken):
                self._change(line)
                if glued and after is not None:
                    self._change(after)
                    # What is behind it hangs on the same line.
                    after.whole = after.whole and not broken
        return text[:length]

    def _change(self, line: Line) -> None:
        if line.key is not None:
            self.changed.add(line.key)


def mutated(lines: list[Line], rng: random.Random) -> File:
    """Return a copy of a file with up to four things wrong about it."""
    file = File([Line(line.text, line.key) for line in lines])
    # The order goes first: a line that contradicts another one comes behind it.
    if rng.random() < 0.3:
        rng.shuffle(file.lines)
    for _ in range(rng.randint(0, 4)):
        rng.choice(MUTATIONS)(file, rng)
    return file


def _some(file: File, rng: random.Random) -> Line | None:
    """Return one of the rows' own lines."""
    return rng.choice(own) if (own := [line for line in file.lines if line.key is not None]) else None


def _spoil(file: File, line: Line, text: bytes) -> None:
    line.text, line.whole = text, False
    assert line.key is not None
    file.changed.add(line.key)


def _drop(file: File, rng: random.Random) -> None:
    if line := _some(file, rng):
        file.lines.remove(line)
        assert line.key is not None
        file.changed.add(line.key)


def _repeat(file: File, rng: random.Random) -> None:
    if line := _some(file, rng):
        copy = Line(line.text, line.key, whole=line.whole)
        file.lines.insert(rng.randint(file.lines.index(line) + 1, len(file.lines)), copy)


def _contradict(file: File, rng: random.Random) -> None:
    line = _some(file, rng)
    if line is None or not line.whole or b"document" not in line.text:
        return
    # Of its own key, and yet no line of its own: were the first one to go, this one would stand in.
    copy = Line(line.text.replace(b"document", b"contradiction"), line.key)
    file.lines.insert(rng.randint(file.lines.index(line) + 1, len(file.lines)), copy)


def _noise(file: File, rng: random.Random) -> None:
    text = rng.choice(NOISE) if rng.random() < 0.8 else rng.randbytes(rng.randint(1, 40))
    file.lines.insert(rng.randint(0, len(file.lines)), Line(text, None, whole=False))


def _stranger(file: File, rng: random.Random) -> None:
    if line := _some(file, rng):
        assert line.key is not None
        other = bytes(rng.choice(b"abcdefgh_-") for _ in line.key)
        text = line.text.replace(line.key.encode(), other)
        file.lines.insert(rng.randint(0, len(file.lines)), Line(text, None, whole=line.whole))


def _blank(file: File, rng: random.Random) -> None:
    file.lines.insert(rng.randint(0, len(file.lines)), Line(rng.choice(BLANK), None))


def _mark(file: File, rng: random.Random) -> None:
    if file.lines:
        line = file.lines[0] if rng.random() < 0.5 else rng.choice(file.lines)
        line.text = "\ufeff".encode() + line.text


def _carriage_returns(file: File, rng: random.Random) -> None:
    for line in file.lines:
        line.end = line.end.replace(b"\n", b"\r\n")


def _glue(file: File, rng: random.Random) -> None:
    if file.lines:
        rng.choice(file.lines).end = b""


def _cut_file(file: File, rng: random.Random) -> None:
    file.cut_at = min(file.cut_at, rng.random())


def _cut_line(file: File, rng: random.Random) -> None:
    if line := _some(file, rng):
        _spoil(file, line, line.text[: rng.randint(0, max(len(line.text) - 1, 0))])


def _behead(file: File, rng: random.Random) -> None:
    if line := _some(file, rng):
        _spoil(file, line, line.text[rng.randint(1, max(len(line.text), 1)) :])


def _flip(file: File, rng: random.Random) -> None:
    if (line := _some(file, rng)) and line.text:
        text = bytearray(line.text)
        for _ in range(rng.randint(1, 3)):
            text[rng.randrange(len(text))] = rng.randrange(256)
        _spoil(file, line, bytes(text))


def _odd_bytes(file: File, rng: random.Random) -> None:
    if line := _some(file, rng):
        at = rng.randint(0, len(line.text))
        _spoil(file, line, line.text[:at] + rng.choice(ODD_BYTES) + line.text[at:])


def _odd_value(file: File, rng: random.Random) -> None:
    line = _some(file, rng)
    if line is None or not line.whole:
        return
    value = json.loads(line.text.decode().lstrip("\ufeff"))
    holder, name = rng.choice(list(_places(value)))
    holder[name] = rng.choice(ODD_VALUES)
    _spoil(file, line, json.dumps(value).encode())


def _odd_usage(file: File, rng: random.Random) -> None:
    line = _some(file, rng)
    if line is None or not line.whole:
        return
    value = json.loads(line.text.decode().lstrip("\ufeff"))
    places = [
        place for place in _places(value) if str(place[1]).endswith("tokens") or place[1] in ("usage", "status_code")
    ]
    if places:
        holder, name = rng.choice(places)
        holder[name] = rng.choice(ODD_VALUES)
        _spoil(file, line, json.dumps(value).encode())


def _odd_field(file: File, rng: random.Random) -> None:
    """Put a field in front: one that is there twice then, one that nests without end, or one of great length."""
    if line := _some(file, rng):
        extra = rng.choice(
            (
                b'"custom_id":"request-7",',
                b'"response":null,"result":null,',
                b'"deep":' + b"[" * 3000 + b"]" * 3000 + b",",
                b'"deep":' + b'{"a":' * 3000 + b"1" + b"}" * 3000 + b",",
                b'"number":' + b"7" * 6000 + b",",
                b'"long":"' + b"x" * 20_000 + b'",',
                b" " * 20_000,
            )
        )
        _spoil(file, line, line.text.replace(b"{", b"{" + extra, 1))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place in a value, as what holds it and its name there."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield value, name
        yield from _places(item)


MUTATIONS: tuple[Callable[[File, random.Random], None], ...] = (
    _drop,
    _repeat,
    _contradict,
    _noise,
    _stranger,
    _blank,
    _mark,
    _carriage_returns,
    _glue,
    _cut_file,
    _cut_line,
    _behead,
    _flip,
    _odd_bytes,
    _odd_value,
    _odd_usage,
    _odd_field,
)
