"""The ``[privacy]`` table: how a patient is protected while a site trains."""

from __future__ import annotations

from pydantic import Field

from aiseeme_models.options import Options
from aiseeme_models.privacy.clipping import Clipping
from aiseeme_models.privacy.spending import LEAST_DELTA, LEAST_NOISE


class PrivacyOptions(Options):
    """DP-SGD with the patient as the unit (Abadi et al. 2016, arXiv 1607.00133).

    A stage's ``batch_size`` is then the number of patients that a step draws on average, each with probability
    ``batch_size / patients``, and one image of each; an epoch is as many steps as an average of one draw of every
    patient takes.

    ``views`` random views of that one image are averaged before the patient is clipped (augmentation multiplicity, De
    et al. 2022, arXiv 2204.13650). With ``clipping = "adaptive"`` the bound begins at ``max_grad_norm`` and follows the
    ``quantile`` of the patients' norms (Andrew et al. 2021, arXiv 1905.03871); the noise of that is part of
    ``noise_multiplier``.
    """

    noise_multiplier: float = Field(
        ge=LEAST_NOISE, le=1000, description="standard deviation of the noise over max_grad_norm"
    )
    max_grad_norm: float = Field(1.0, ge=1e-3, le=1e6, description="largest norm of a patient's gradient")
    delta: float = Field(1e-5, ge=LEAST_DELTA, lt=0.1, description="the delta at which a run's epsilon is told")
    clipping: Clipping = Field("flat", description="flat, per-layer or adaptive")
    quantile: float = Field(0.5, gt=0, lt=1, description="adaptive: the part of patients that is not clipped")
    adapt_rate: float = Field(0.2, gt=0, le=1, description="adaptive: how fast the bound follows")
    views: int = Field(1, ge=1, le=64, description="views of a patient's image, averaged before clipping")
    physical_batch: int = Field(32, ge=1, le=4096, description="patients that are computed at once: bounds the memory")


class SitePrivacyOptions(Options):
    """The ``[site_privacy]`` table: a whole site is hidden from the other sites and from whoever gets the model.

    In every round each site's update is clipped to ``clip_norm``, all count alike, and the coordinator adds noise of
    ``noise_multiplier * clip_norm`` over the number of sites that answered to their mean (McMahan et al. 2018, arXiv
    1710.06963). The coordinator sees the updates as they are.
    """

    noise_multiplier: float = Field(
        ge=LEAST_NOISE, le=1000, description="standard deviation of the sum's noise over clip_norm"
    )
    clip_norm: float = Field(gt=0, le=1e6, description="largest norm of what a site changes in a round")
    delta: float = Field(1e-5, ge=LEAST_DELTA, lt=0.1, description="the delta at which epsilon is told")
