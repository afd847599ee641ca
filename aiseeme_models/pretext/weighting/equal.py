"""Every task counts alike: the plain sum of the losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aiseeme_models.options import Options
from aiseeme_models.pretext.weighting.base import Weighting, weightings


class EqualOptions(Options):
    """There is nothing to choose."""


@weightings.register("equal")
class Equal(Weighting[EqualOptions]):
    """``sum_t L_t``."""

    paper = "Doersch & Zisserman 2017, arXiv 1708.07860"
    options_type = EqualOptions

    def objective(self, losses: Sequence[Tensor]) -> Tensor:
        """See `Weighting.objective`."""
        return torch.stack(list(losses)).sum()
