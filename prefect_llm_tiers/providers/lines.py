"""JSON lines in pieces: the requests of a batch on their way out, its results on their way in."""

import tempfile
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from typing import IO

from prefect_llm_tiers.core.ports import BatchLine

__all__ = ["MAX_LINE_BYTES", "chunks", "split_lines", "spooled"]

MAX_LINE_BYTES = 64 * 1024 * 1024
"""The longest line that is read; a longer one is dropped as broken, or one line could fill the memory."""

_CHUNK_BYTES = 256 * 1024
_BOM = b"\xef\xbb\xbf"


async def split_lines(pieces: AsyncIterable[bytes]) -> AsyncGenerator[bytes | None, None]:
    r"""Yield the lines of a text that comes in pieces; None for one longer than `MAX_LINE_BYTES`.

    A line ends at `\n` alone: U+2028 and its kin, at which `str.splitlines` would cut, may stand inside
    an answer. `\r` before the end and a byte order mark before the start go; blank lines are no lines.
    """
    held: list[bytes] = []
    size = 0
    async for piece in pieces:
        *ends, rest = piece.split(b"\n")
        for end in ends:
            size += len(end)
            if size > MAX_LINE_BYTES:
                yield None
            elif line := _trimmed(b"".join((*held, end))):
                yield line
            held.clear()
            size = 0
        size += len(rest)
        if size > MAX_LINE_BYTES:
            held.clear()
        elif rest:
            held.append(rest)
    if size > MAX_LINE_BYTES:
        yield None
    elif line := _trimmed(b"".join(held)):
        yield line


def _trimmed(line: bytes) -> bytes:
    return line.strip(b" \t\r").removeprefix(_BOM).strip(b" \t\r")


async def spooled(
    lines: AsyncIterable[BatchLine],
    encode: Callable[[BatchLine], bytes],
    *,
    head: bytes = b"",
    between: bytes = b"",
    tail: bytes = b"",
) -> IO[bytes]:
    """Return an open, unnamed temporary file that holds the encoded lines, at its start.

    On disk, because a batch may have 256 MB and its size must be known before the first byte is sent; without
    a name, so that a process that dies leaves no prompts behind.
    """
    file = tempfile.TemporaryFile()  # noqa: SIM115 - handed to the caller, who closes it
    try:
        file.write(head)
        first = True
        async for line in lines:
            if not first:
                file.write(between)
            first = False
            file.write(encode(line))
        file.write(tail)
        # Flushes too: the form encoder takes the length from the descriptor, which does not see the buffer.
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


async def chunks(file: IO[bytes]) -> AsyncIterator[bytes]:
    """Yield a file's bytes from its position on, in pieces."""
    while piece := file.read(_CHUNK_BYTES):
        yield piece
