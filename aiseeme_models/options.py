"""The base of every method's typed options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from aiseeme_models.errors import InputError


class Options(BaseModel):
    """Frozen, strict options of one method: unknown keys and wrong types are errors.

    Integers are accepted where a float is meant (TOML writes ``lr = 1``), nothing else is coerced.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)


Kind = TypeVar("Kind", bound=Options)


def parse_options(kind: type[Kind], given: Mapping[str, object], *, where: str, owner: str) -> Kind:
    """Options from a configuration's table.

    Args:
        kind: the options' type.
        given: the table.
        where: what the table is called, for errors.
        owner: whose options they are, for errors.

    Raises:
        InputError: every key that is unknown or wrong, and what there is.
    """
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        faults, is_about_a_key = [], False
        for fault in error.errors(include_url=False, include_input=False, include_context=False):
            is_about_a_key |= len(fault["loc"]) == 1
            key = ".".join([where, *map(str, fault["loc"])])
            what = "unknown key" if fault["type"] == "extra_forbidden" else fault["msg"].removeprefix("Value error, ")
            faults.append(f"{key}: {what}")
        known = f" ({owner} has {', '.join(kind.model_fields) or 'no options'})" if is_about_a_key else ""
        raise InputError(f"{'; '.join(faults)}{known}") from None
