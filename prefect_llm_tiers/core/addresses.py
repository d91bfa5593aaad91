"""Where a key may be sent: encrypted, or to this machine itself."""

from ipaddress import ip_address
from urllib.parse import urlsplit

__all__ = ["base_url_fault", "is_loopback"]


def base_url_fault(base_url: str) -> str | None:
    """Return why a key may not be sent to a base URL, as the rest of a sentence about it; None where it may.

    Nothing of a URL is repeated but its host: it may hold a password.
    """
    try:
        parts = urlsplit(base_url)
        host, user, password = parts.hostname, parts.username, parts.password
    except ValueError:
        host, user, password = None, None, None
    if host is None or parts.scheme not in ("http", "https"):
        return "is no http(s) URL. Give one as 'https://api.openai.com/v1'."
    if user is not None or password is not None:
        return "holds a user name or password, and URLs are shown in messages. Put the key into `api_key`."
    if parts.scheme == "http" and not is_loopback(host):
        return (
            f"is http://{host}, which is not encrypted: it would send the key in the clear, and the prompts with it. "
            "Use https, or a loopback address for a server on this machine."
        )
    return None


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine itself."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
