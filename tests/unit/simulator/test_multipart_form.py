import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_llm_tiers.simulator.multipart import FormPart, MalformedForm, read_form

BOUNDARY = "x1y2"
TYPE = f"multipart/form-data; boundary={BOUNDARY}"


def form(content: bytes) -> bytes:
    """Return a form with a purpose and a file."""
    return (
        b'--x1y2\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--x1y2\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n" + content + b"\r\n--x1y2--\r\n"
    )


def read(body: bytes, size: int, most_bytes: int = 10**6) -> dict[str, FormPart]:
    """Read a form that arrives in chunks of a size."""

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    return asyncio.run(read_form(TYPE, chunks(), most_bytes=most_bytes))


@given(st.binary(max_size=200), st.integers(1, 60))
def test_a_file_arrives_byte_for_byte_however_it_is_cut(content: bytes, size: int) -> None:
    """Chunks may end anywhere, inside a boundary too."""
    parts = read(form(content), size)
    assert bytes(parts["purpose"].content) == b"batch"
    assert (parts["file"].filename, bytes(parts["file"].content)) == ("a.jsonl", content)


@pytest.mark.parametrize("tail", [b"\r\n--x1y", b"\r\n--x1y2", b"\r\n", b"--x1y2--", b"\r\n--x1y\r\n--x1"])
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_what_looks_like_a_boundary_is_content(tail: bytes, size: int) -> None:
    """Only a whole boundary ends a part; a file that holds beginnings of one is kept."""
    content = b"line" + tail.removesuffix(b"2") + b"z"
    assert bytes(read(form(content), size)["file"].content) == content


def test_a_form_that_does_not_end_is_malformed() -> None:
    """A body cut short is an error, not a shorter file."""
    with pytest.raises(MalformedForm, match="closing boundary"):
        read(form(b"abc")[:-8], 16)


def test_a_part_has_a_limit() -> None:
    """A file above the limit ends the reading."""
    with pytest.raises(OverflowError):
        read(form(b"a" * 1000), 64, most_bytes=500)
