"""A share of a site's training patients, the same in every home."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from aiseeme_models.seeding import generator
from client.grouping import lasting_names

if TYPE_CHECKING:
    from client.scanning import CatalogueRow
    from client.site import Site
    from federation_configs.schema import FederationConfig


def some_patients(site: Site, fraction: float, config: FederationConfig) -> list[CatalogueRow]:
    """The site's rows without those of all but ``fraction`` of its training patients (rounded up).

    Whole patients, drawn by the configuration's seed and the site's name; the draws of one seed are nested.
    """
    training = site.rows_of("train", config.holdout)
    patients = sorted(set(lasting_names(training)))
    order = torch.randperm(len(patients), generator=generator(config.seed, "share", site.name)).tolist()
    kept = {patients[place] for place in order[: math.ceil(fraction * len(patients))]}
    dropped = {
        row.content for row, patient in zip(training, lasting_names(training), strict=True) if patient not in kept
    }
    return [row for row in site.rows if row.content not in dropped]
