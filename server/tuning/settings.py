"""A federation with a setting in the place of those that are looked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from federation_configs.loading import check_config

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiseeme_models.curriculum.tuning import Setting
    from federation_configs.schema import FederationConfig
    from server.tuning.found import FoundSetting


def with_setting(config: FederationConfig, stage: int, setting: Setting, **changes: Any) -> FederationConfig:
    """The federation whose ``stage`` (an index) has this rate and batch size, and other ``changes`` of its table."""
    changed = config.model_dump(mode="json")
    table = changed["curriculum"]["stage"][stage]
    table |= {"tune": None, "lr": setting.lr, "batch_size": setting.batch_size, **changes}
    return check_config(changed, where=f"{config.name} with {setting.title}")


def among(config: dict[str, Any], sites: int) -> dict[str, Any]:
    """A dumped configuration for ``sites`` of the federation's sites; a single one has no server to optimise."""
    federation = config["federation"] | {"sites": None, "required_sites": [], "min_sites": sites}
    if sites == 1:
        federation |= {"aggregation": "fedavg", "aggregation_options": {}}
    return config | {"federation": federation}


def with_found(config: FederationConfig, found: Sequence[FoundSetting | None]) -> FederationConfig:
    """The federation with what was found for its stages so far; stages to come may still ask for it."""
    from aiseeme_models.curriculum.tuning import Setting

    for stage, one in enumerate(found):
        if one is not None:
            config = with_setting(config, stage, Setting(one.lr, one.batch_size))
    return config
