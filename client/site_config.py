"""``site.toml``: what a hospital lets in, what it lets a coordinator do, and what its machine may spend on it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self
from urllib.parse import urlsplit

from pydantic import Field, StringConstraints, ValidationError, ValidationInfo, field_validator, model_validator

from aiseeme_models.errors import InputError
from aiseeme_models.images.rejection import POLICY_REASONS, RejectReason
from aiseeme_models.options import Options
from aiseeme_models.privacy.spending import LEAST_DELTA, LEAST_NOISE
from client.schedule import ScheduleOptions

if TYPE_CHECKING:
    from aiseeme_models.images.decode_pool import DecodeLimits

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Cohort = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,47}$")]
SMALLEST_SITE = 5
"""With fewer training images no site takes part: a smaller count may point at a person."""


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
        from aiseeme_models.images.decode_pool import DecodeLimits

        return DecodeLimits(self.seconds_per_file, int(self.memory_gb_per_file * 2**30), self.workers)


class CacheOptions(Options):
    """The ``[cache]`` table: where decoded images are kept, and how."""

    folder: str | None = Field(
        default=None, pattern=r"^/[^\x00]*$", description="where, from the root; default: `cache` beside site.toml"
    )
    budget_gb: float | None = Field(default=None, gt=0, description="most disk space, in 10^9 bytes")
    encrypt: bool = Field(default=False, description="AES-256-GCM at rest, under the site's key")


class PolicyOptions(Options):
    """The ``[policy]`` table: which requests this site answers. What is not limited here is allowed."""

    coordinators: tuple[Digest, ...] | None = Field(
        default=None,
        min_length=1,
        description="signing keys (64 hexadecimal digits) whose requests are answered; default: the one of the kit",
    )
    bundles: tuple[Digest, ...] | None = Field(
        default=None,
        min_length=1,
        description="sha256 of the app bundles that may be named here; default: the one of this version",
    )
    tasks: tuple[str, ...] | None = Field(default=None, min_length=1, description="what may be trained; default: all")
    backbones: tuple[str, ...] | None = Field(default=None, min_length=1, description="backbones; default: all")
    presets: tuple[str, ...] | None = Field(default=None, min_length=1, description="image presets; default: all")
    cohorts: tuple[Cohort, ...] | None = Field(
        default=None,
        min_length=1,
        description="cohorts (`aiseeme-site scan --cohort`) whose images may be used; default: all",
    )
    min_images: int = Field(
        default=SMALLEST_SITE,
        ge=SMALLEST_SITE,
        le=2**31,
        description="training images that this site must have to take part",
    )
    label_columns: tuple[str, ...] = Field(
        default=(),
        description="columns of labels.csv, as label, that classifiers learn and audits compare by; default: none",
    )
    max_image_size: int | None = Field(default=None, ge=16, description="largest side of the square images, in pixels")
    max_rounds: int | None = Field(default=None, ge=1, description="most rounds of one run, over all of its stages")
    max_epochs_per_day: float | None = Field(
        default=None, gt=0, description="most passes over the site's images in 24 hours, over all runs"
    )
    max_comparisons_per_day: int | None = Field(
        default=None, ge=0, description="most comparisons and tests of models in 24 hours; 0: none"
    )
    max_batch_size: int | None = Field(default=None, ge=1, description="largest batch, in images")
    require_dp: bool = Field(default=False, description="refuse what is not trained with differential privacy")

    @field_validator("tasks", "backbones", "presets")
    @classmethod
    def _names_exist(cls, names: tuple[str, ...] | None, field: ValidationInfo) -> tuple[str, ...] | None:
        # Imported only for a site that names some: the registries of methods bring PyTorch with them.
        if names is None:
            return None
        for name in names:
            if field.field_name == "tasks":
                from aiseeme_models.curriculum.stage_tasks import stage_tasks

                stage_tasks[name]  # InputError is a ValueError: pydantic reports it with the key
            elif field.field_name == "backbones":
                from aiseeme_models.backbones import backbones

                backbones[name]
            else:
                from aiseeme_models.images.presets import image_presets

                image_presets[name]
        return names

    def approved_bundles(self, shipped: str) -> frozenset[str]:
        """The sha256 of bundles that may be named here, ``shipped`` being the one of the installed version."""
        return frozenset((shipped,) if self.bundles is None else self.bundles)

    @property
    def allowed_cohorts(self) -> frozenset[str] | None:
        """The cohorts whose images may be used; None: all."""
        return None if self.cohorts is None else frozenset(self.cohorts)


class BudgetOptions(Options):
    """The ``[privacy]`` table: what may be spent of each patient's privacy, over all rounds, runs and coordinators."""

    epsilon: float | None = Field(
        default=None, gt=0, le=1000, description="most that may be spent; then only private training is let in"
    )
    delta: float = Field(default=1e-5, ge=LEAST_DELTA, le=0.01, description="the delta at which it is counted")
    local_noise: float | None = Field(
        default=None, ge=2 * LEAST_NOISE, le=1000, description="noise on every update that leaves, over local_clip"
    )
    local_clip: float | None = Field(default=None, gt=0, le=1e6, description="largest norm of such an update")

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.local_noise is None) != (self.local_clip is None):
            raise ValueError("local_noise and local_clip belong together: set both, or none")
        return self


class MachineOptions(Options):
    """The ``[machine]`` table: what the federation may use of this machine."""

    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|cuda|cuda:[0-9]{1,2})$", description="auto, cpu, cuda or cuda:1"
    )
    memory_gb: float | None = Field(
        default=None,
        ge=0.5,
        le=4096,
        description="most memory of the process that trains, in 2^30 bytes, and most memory of the GPU",
    )
    threads: int | None = Field(default=None, ge=1, le=1024, description="CPU threads; default: one per core")


class ConnectionOptions(Options):
    """The ``[connection]`` table: how the gateway is reached."""

    proxy: str | None = Field(
        default=None,
        description='HTTP proxy for the way out, as "http://proxy.hospital:3128", or "none"; '
        "default: what HTTPS_PROXY says",
    )
    quickest_poll_s: float = Field(
        default=0.1, ge=0.02, le=60, description="seconds between two questions for work while a run goes on"
    )
    slowest_poll_s: float = Field(default=1.0, ge=0.02, le=60, description="and when nothing has come for a while")

    @field_validator("proxy")
    @classmethod
    def _is_a_proxy(cls, proxy: str | None) -> str | None:
        if proxy is None or proxy == "none":
            return proxy
        try:
            parts = urlsplit(proxy)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:  # a port that is no number
            usable = False
        if not usable or any(char.isspace() for char in proxy):
            raise ValueError('write it as "http://proxy.hospital:3128", or "none" for no proxy')
        return proxy

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.quickest_poll_s > self.slowest_poll_s:
            raise ValueError("quickest_poll_s is longer than slowest_poll_s")
        return self


class SiteConfig(Options):
    """A hospital's own settings. All have defaults: the file need not exist."""

    intake: IntakeOptions = IntakeOptions()
    cache: CacheOptions = CacheOptions()
    policy: PolicyOptions = PolicyOptions()
    privacy: BudgetOptions = BudgetOptions()
    schedule: ScheduleOptions = ScheduleOptions()
    machine: MachineOptions = MachineOptions()
    connection: ConnectionOptions = ConnectionOptions()


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
    table = SiteConfig.model_fields.get(str(place[0])) if len(place) > 1 else None
    kind = SiteConfig if table is None else table.annotation
    assert isinstance(kind, type) and issubclass(kind, Options)
    return list(kind.model_fields)
