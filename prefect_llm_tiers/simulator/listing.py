"""What may be wrong with a page of a list of batches; the same for every dialect."""

from enum import Enum, auto

from prefect_llm_tiers.simulator.batches import Batch
from prefect_llm_tiers.simulator.world import World

__all__ = ["Listing", "draw_listing"]


class Listing(Enum):
    """How a page comes."""

    WHOLE = auto()
    UNAVAILABLE = auto()
    """503."""
    TRUNCATED = auto()
    """Half of it, and it says that nothing follows."""
    ENDLESS = auto()
    """Something follows always: after the last page it comes again."""


def draw_listing(world: World, dialect: str, cursor: Batch | None) -> Listing:
    """Draw how a page comes.

    An endless list stays so for a spell of time, because one page's say-so would end it at the next.

    Args:
        world: The world.
        dialect: Whose list.
        cursor: The batch after which the page begins; None for the first page.
    """
    draws = world.draws
    if not draws.any_of("list_503", "list_truncated", "list_endless"):
        return Listing.WHOLE
    page = dialect if cursor is None else cursor.fate.key
    number = world.look_at_page(page)
    if draws.strikes("list_503", page, number):
        return Listing.UNAVAILABLE
    if draws.strikes("list_truncated", page, number):
        return Listing.TRUNCATED
    spell = int((world.clock.now() - world.origin).total_seconds() // world.settings.faults.list_spell_s)
    return Listing.ENDLESS if draws.strikes("list_endless", dialect, spell) else Listing.WHOLE
