"""From a TOML file to a checked configuration, with errors that a person can act on."""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ValidationError

from aiseeme_models.errors import InputError
from federation_configs.schema import FederationConfig

READY_MADE = Path(__file__).parent
MAX_BYTES = 1_000_000

_TOO_DEEP = "nested too deeply; a federation has tables in tables, three or four deep"


def ready_made() -> dict[str, Path]:
    """The federations that ship with the package, by name."""
    return {path.stem: path for path in sorted(READY_MADE.glob("*.toml"))}


def find_config(reference: str | Path) -> Path:
    """The file meant by a path or by the name of a ready-made federation.

    Raises:
        InputError: neither a file nor a ready-made name.
    """
    path = Path(reference)
    if path.is_file():
        return path
    if str(reference) in ready_made():
        return ready_made()[str(reference)]
    raise InputError(f"{reference}: no such file; ready-made federations are {', '.join(ready_made())}")


def load_config(reference: str | Path) -> FederationConfig:
    """Read and check a configuration.

    Args:
        reference: a TOML file or the name of a ready-made federation (``"skin-small"``).

    Raises:
        InputError: every problem that was found, each with the file, the key and what would be right.
        OSError: the file cannot be read.
    """
    path = find_config(reference)
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path}: larger than {MAX_BYTES} bytes; a federation is a short TOML file")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); a federation is a TOML file") from None
    except RecursionError:
        raise InputError(f"{path}: {_TOO_DEEP}") from None
    except ValueError as error:  # TOMLDecodeError, and numbers of thousands of digits
        raise InputError(f"{path}: not valid TOML: {error}") from None
    return check_config(data, where=str(path))


def check_config(data: dict[str, Any], where: str) -> FederationConfig:
    """Check a configuration that was parsed already; ``where`` names its origin in errors."""
    try:
        # JSON mode: TOML arrays are accepted where tuples are meant, and nothing else is coerced.
        text = json.dumps(data, default=str)
    except RecursionError:
        raise InputError(f"{where}: {_TOO_DEEP}") from None
    except ValueError as error:  # hexadecimal numbers of thousands of digits
        raise InputError(f"{where}: {error}") from None
    try:
        return FederationConfig.model_validate_json(text)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except ValidationError as error:
        raise InputError("\n".join(_explain(error, where))) from None


def to_toml(config: FederationConfig) -> str:
    """The resolved configuration, defaults written out (but those that mean "none given")."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def config_sha256(config: FederationConfig) -> str:
    """SHA-256 of the resolved configuration (canonical JSON): equal for equal meaning, whatever the file's layout."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _explain(error: ValidationError, where: str) -> Iterator[str]:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    for problem in problems:
        place = problem["loc"]
        deeper = [other for other in problems if other is not problem and other["loc"][: len(place)] == place]
        if problem["type"] == "too_short" and deeper:
            continue  # a list is only short of the parts that are wrong
        parts = [str(part) for part in place]
        key = ".".join(parts)
        if problem["type"] == "extra_forbidden":
            yield f"{where}: {key}: unknown key{_closest(error.title, parts)}"
        elif problem["type"] == "missing":
            yield f"{where}: {key}: missing; it is required"
        else:
            text = problem["msg"].removeprefix("Value error, ")
            yield f"{where}: {key}{': ' if key else ''}{text[0].lower()}{text[1:]}"


def _closest(title: str, parts: list[str]) -> str:
    """Which keys there are instead of the unknown one, walking the schema along the error's location."""
    model: Any = FederationConfig if title == FederationConfig.__name__ else None
    for part in parts[:-1]:
        if part.isdigit() or model is None:
            continue
        field = model.model_fields.get(part)
        model = _model_in(field.annotation) if field is not None else None
    if model is None:
        return ""
    close = difflib.get_close_matches(parts[-1], model.model_fields, n=1)
    names = ", ".join(model.model_fields)
    return f"; did you mean {close[0]}?" if close else f"; there are {names}"


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if (found := _model_in(inner)) is not None:
            return found
    return None
