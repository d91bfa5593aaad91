"""Where the text stands in a list of messages, in either dialect."""

from typing import Any

__all__ = ["last_user_text", "text_size"]

_TEXT_FIELDS = ("text", "content", "output", "arguments", "input")


def _texts(said: Any) -> list[str]:
    if isinstance(said, str):
        return [said]
    if isinstance(said, list):
        return [text for part in said for text in _texts(part)]
    if isinstance(said, dict):
        return [text for name in _TEXT_FIELDS if name in said for text in _texts(said[name])]
    return []


def text_size(said: Any) -> int:
    """Return the UTF-8 bytes of all text in a prompt, however it is nested."""
    return sum(len(text.encode(errors="replace")) for text in _texts(said))


def last_user_text(said: Any) -> str:
    """Return the text of the user's last message."""
    if isinstance(said, list):
        for message in reversed(said):
            if isinstance(message, dict) and message.get("role", "user") == "user":
                return "\n".join(_texts(message))
    return "\n".join(_texts(said))
