"""The base of every method's typed options."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """Frozen, strict options of one method: unknown keys and wrong types are errors.

    Integers are accepted where a float is meant (TOML writes ``lr = 1``), nothing else is coerced.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)
