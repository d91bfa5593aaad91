"""What a database refuses, in the user's words: the fact, the cause, the next action, and no values."""

from sqlalchemy import exc

from prefect_llm_tiers.errors import LedgerUnusable
from prefect_llm_tiers.ledger import engines

__all__ = ["cause", "unusable"]

_RESTORE = "Restore the file from a backup, or move it away if it never was a ledger: what is in one was paid."
_PERMIT = "Give this user write access to the file and its folder, or name another path."
_MAKE_ROOM = "Make room on that disk and run again; what was committed before stands."
_CORRECT = "Correct user and password in the ledger's URL, or let the server take them."
_MAKE_IT = (
    "Make that database and that user first, the database with ENCODING 'UTF8', or name others in the ledger's URL."
)
_WAIT = f"Another process was writing for over {engines.BUSY_TIMEOUT_S} s: end it or wait, and run again."

# By words of SQLite's messages, which have stood for decades; its codes do not tell these cases apart better.
_BY_WORDS = (
    (("not a database", "malformed"), _RESTORE),
    (("readonly", "unable to open"), _PERMIT),
    (("full", "disk I/O"), _MAKE_ROOM),
    (("locked",), _WAIT),
    # What PostgreSQL says before there is a connection bears no code.
    (("does not exist",), _MAKE_IT),
    (("authentication", "pg_hba"), _CORRECT),
)

# By PostgreSQL's codes: its messages come in the language of the server.
_BY_CODE = {
    "25006": "This server takes no writes: name the primary, and not a replica of it.",
    "28000": _CORRECT,
    "28P01": _CORRECT,
    "3D000": _MAKE_IT,
    "3F000": "Make that schema first, or leave the search path out of the ledger's URL.",
    "42501": "Give this user the right to make and write tables there, or name another user in the ledger's URL.",
    "42P07": "Tables of another application are in the way: give the ledger a database or a schema of its own.",
    "53100": _MAKE_ROOM,
    "53300": "The server takes no more connections: close some, or raise its max_connections, and run again.",
    "55P03": _WAIT,
}

_OTHERWISE = "Check that it can be reached and written, and run again; what was committed before stands."


def cause(error: exc.SQLAlchemyError) -> str:
    """Return why the database refused, in the driver's own words, and take every value out of the error.

    PostgreSQL adds the row that it refused to what it says, and an error goes on to logs and result stores:
    only what it says first is left in `error` and in the driver's.
    """
    driver = getattr(error, "orig", None)
    if driver is None:
        return type(error).__name__
    # SQLAlchemy's own words would add the statement.
    told = str(getattr(getattr(driver, "diag", None), "message_primary", None) or driver)
    if hasattr(driver, "diag"):
        driver.args = (told,)
        error.args = (f"({type(driver).__name__}) {told}",)
    return told


def unusable(name: str, error: exc.SQLAlchemyError, *, committing: bool = False) -> LedgerUnusable:
    """Return the error a user meets when the database itself refuses, with the cause and the next action.

    Args:
        name: What to call the ledger.
        error: What it said. Values are taken out of it.
        committing: Whether the commit was under way: where the connection is lost then, nobody knows.
    """
    told = cause(error)
    code = getattr(getattr(error, "orig", None), "sqlstate", None)
    action = _BY_CODE.get(code) if code else None
    if action is None:
        action = next((action for words, action in _BY_WORDS if any(word in told for word in words)), _OTHERWISE)
    kept = "Nothing of this change was kept."
    if committing and getattr(error, "connection_invalidated", False):
        kept = "The connection was lost while this change was committed: it was kept whole or not at all."
    return LedgerUnusable(f"The ledger {name} cannot be used: {told}. {kept} {action}")
