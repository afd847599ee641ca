"""``site.toml``: what a hospital lets in, and what its machine may spend on it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from pydantic import Field, ValidationError, field_validator

from aiseeme_models.errors import InputError
from aiseeme_models.images.decode_pool import DecodeLimits
from aiseeme_models.images.rejection import POLICY_REASONS, RejectReason
from aiseeme_models.options import Options


class IntakeOptions(Options):
    """The ``[intake]`` table: which images may be used, and what reading one file may cost."""

    admit: tuple[str, ...] = Field(default=(), description="reasons of quarantine that do not keep an image out")
    seconds_per_file: float = Field(default=120.0, gt=0, le=86_400, description="a file that takes longer is rejected")
    memory_gb_per_file: float = Field(default=4.0, ge=0.5, le=4096, description="memory of one decoding process")
    workers: int | None = Field(default=None, ge=1, le=256, description="decoding processes; default: one per core")

    @field_validator("admit")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        known = [reason.value for reason in POLICY_REASONS]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no reason of quarantine: there are {', '.join(known)}")
        return names

    @property
    def admitted(self) -> frozenset[RejectReason]:
        """Findings that do not keep an image out."""
        return frozenset(RejectReason(name) for name in self.admit)

    @property
    def limits(self) -> DecodeLimits:
        """What one file may cost."""
        return DecodeLimits(self.seconds_per_file, int(self.memory_gb_per_file * 2**30), self.workers)


class CacheOptions(Options):
    """The ``[cache]`` table: where decoded images are kept, and how."""

    folder: str | None = Field(
        default=None, pattern=r"^/[^\x00]*$", description="where, from the root; default: `cache` beside site.toml"
    )
    budget_gb: float | None = Field(default=None, gt=0, description="most disk space, in 10^9 bytes")
    encrypt: bool = Field(default=False, description="AES-256-GCM at rest, under the site's key")


class SiteConfig(Options):
    """A hospital's own settings. All have defaults: the file need not exist."""

    intake: IntakeOptions = IntakeOptions()
    cache: CacheOptions = CacheOptions()


def load_site_config(path: Path) -> SiteConfig:
    """Read ``site.toml``; the defaults where there is none.

    Raises:
        InputError: every problem, with the key and what would be right.
    """
    if not path.exists():
        return SiteConfig()
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None
    try:
        return SiteConfig.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        problems = []
        for fault in error.errors(include_url=False, include_input=False, include_context=False):
            key = ".".join(str(part) for part in fault["loc"])
            known = f"; there are {', '.join(_keys_beside(fault['loc']))}"
            what = f"unknown key{known}" if fault["type"] == "extra_forbidden" else fault["msg"]
            problems.append(f"{path}: {key}: {what.removeprefix('Value error, ')}")
        raise InputError("\n".join(problems)) from None


def _keys_beside(place: tuple[int | str, ...]) -> list[str]:
    tables: dict[str, type[Options]] = {"intake": IntakeOptions, "cache": CacheOptions}
    kind = tables.get(str(place[0]), SiteConfig) if len(place) > 1 else SiteConfig
    return list(kind.model_fields)
