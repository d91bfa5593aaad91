"""JSON lines that come in pieces: the results of a batch on their way in."""

from collections.abc import AsyncGenerator, AsyncIterable

__all__ = ["MAX_LINE_BYTES", "Block", "line_blocks", "trimmed"]

MAX_LINE_BYTES = 64 * 1024 * 1024
"""The longest line that is read whole, or one line could fill the memory."""

_HEAD_BYTES = 64 * 1024
"""What is kept of a longer line: enough to read its id, too little to be whole."""

_SLICE_BYTES = 256 * 1024
_BOM = b"\xef\xbb\xbf"


Block = bytes | memoryview
"""Whole lines, one after the other."""


async def line_blocks(pieces: AsyncIterable[bytes]) -> AsyncGenerator[Block, None]:
    r"""Yield the lines of a text that comes in pieces: those that end in one piece together, as they came.

    A line ends at `\n` alone: U+2028 and its kin, at which `str.splitlines` would cut, may stand inside an
    answer. Of a line longer than `MAX_LINE_BYTES` only the beginning comes. Blank lines and a byte order mark
    are not taken out; see `trimmed`.
    """
    held: list[bytes] = []
    size = 0
    async for whole in pieces:
        for start in range(0, len(whole), _SLICE_BYTES):
            # A piece may be as long as the sender likes; a slice over all of it is the piece itself.
            piece = whole[start : start + _SLICE_BYTES]
            begin, end = 0, piece.rfind(b"\n") + 1
            if end and held:
                begin = piece.index(b"\n") + 1
                held.append(piece[:begin])
                yield _joined(held, size + begin - 1)
                held.clear()
                size = 0
            if begin < end:
                # Not copied: nearly all lines are read out of here.
                yield memoryview(piece)[begin:end]
            if end == len(piece):
                continue
            size += len(piece) - end
            if size <= MAX_LINE_BYTES:
                held.append(piece[end:])
            elif len(held) != 1:
                held[:] = [b"".join((*held, piece[end:]))[:_HEAD_BYTES]]
    if held:
        yield _joined(held, size)


def _joined(parts: list[bytes], size: int) -> bytes:
    line = b"".join(parts)
    return line if size <= MAX_LINE_BYTES else line[:_HEAD_BYTES]


def trimmed(line: bytes) -> bytes:
    """Return a line without white space and byte order marks around it; nothing is left of a blank one."""
    while (less := line.strip(b" \t\r\n").removeprefix(_BOM)) != line:
        line = less
    return line
