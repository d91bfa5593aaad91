"""Settings of a world from what a file or a command line says, refused in words where they cannot be."""

import difflib
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from prefect_llm_tiers.errors import ConfigurationError
from prefect_llm_tiers.simulator.faults import Faults
from prefect_llm_tiers.simulator.settings import BatchLaw, FlexOutages, LiveLaw, WorldSettings

__all__ = ["settings_from"]

_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`")
_FAULT = re.compile(r"(.*?)(?: - at (?:`key` in )?`\$\.?([^`]*)`)?", re.DOTALL)
_STRUCTS: dict[str, type[msgspec.Struct]] = {
    "faults": Faults,
    "batch": BatchLaw,
    "batch_by_model": BatchLaw,
    "live": LiveLaw,
    "flex_outages": FlexOutages,
}


def settings_from(mapping: Mapping[str, Any]) -> WorldSettings:
    """Return the settings that a mapping names, as decoded from JSON or TOML.

    Fields are those of `WorldSettings`, nested as there: `{"seed": 4, "faults": {"create_twice": 0.1}}`.
    A field left out keeps its default.

    Raises:
        ConfigurationError: A name is unknown, or a value is of another type or out of its range.
    """
    try:
        return msgspec.convert(dict(mapping), WorldSettings)
    except msgspec.ValidationError as error:
        found = _FAULT.fullmatch(str(error))
        what, path = (found[1], found[2] or "") if found else (str(error), "")
        raise ConfigurationError(f"The simulated world cannot be made: {_in_words(what, path)}") from None


def _in_words(what: str, path: str) -> str:
    if unknown := _UNKNOWN.fullmatch(what):
        return _unknown(unknown[1], path)
    what = what.replace("Expected", "expected", 1).replace("Invalid", "invalid", 1)
    return f"{f'in `{path}`, ' if path else ''}{what}. Correct it, or leave it out for the default."


def _unknown(name: str, path: str) -> str:
    said = f"there is no setting '{name}'" + (f" in `{path}`" if path else "")
    if not path and name in Faults.__struct_fields__:
        return f"{said} at the top. It belongs under `faults`."
    here = _STRUCTS.get(re.split(r"[.\[]", path)[0], WorldSettings)
    near = difflib.get_close_matches(name, here.__struct_fields__, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"{said}.{hint} `{here.__name__}` lists what there is."
