"""The steps of DP-SGD: patients drawn at random, one image of each, clipped gradients, and noise on their sum."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from aiseeme_models.errors import InputError
from aiseeme_models.pretext.base import PretextTask
from aiseeme_models.privacy.noise import Draws
from aiseeme_models.privacy.options import PrivacyOptions
from aiseeme_models.privacy.patient_gradients import PatientGradients
from aiseeme_models.training.loop import LossOf, Views, ViewsOf


class PrivateSteps:
    """How `training.loop.train_round` steps where patients are protected.

    Every step draws each patient with probability ``batch_size / patients`` and one image of each drawn one, clips what
    each patient contributes, adds normal noise of ``noise_multiplier * bound`` to the sum, and divides by
    ``batch_size``, the number of patients that was to be expected (algorithm 1 of Abadi et al. 2016, arXiv 1607.00133).
    A step that draws nobody is one of noise alone.

    Args:
        patients: for each image, by its index, whose it is: any names.
        every_patient: how many there are; those that have no image here (it could not be read) are drawn in vain.
        batch_size: patients that a step draws on average.
        options: the ``[privacy]`` table.
        draws: where patients, images and noise are drawn from.
        count: how many patients an epoch is said to pass over, where their exact number is not told.
        bound: the largest norm to begin with; default: ``options.max_grad_norm``.

    Attributes:
        count: see above; by default the number of patients.
        sample_rate: with which each is drawn.
        bound: the largest norm now.

    Raises:
        InputError: fewer patients than a step is to draw.
    """

    def __init__(
        self,
        patients: Sequence[str],
        every_patient: int,
        batch_size: int,
        options: PrivacyOptions,
        draws: Draws,
        *,
        count: int | None = None,
        bound: float | None = None,
    ) -> None:
        if batch_size > every_patient:
            raise InputError(f"batches of {batch_size} patients cannot be drawn from {every_patient}")
        images: dict[str, list[int]] = {}
        for index, name in enumerate(patients):
            images.setdefault(name, []).append(index)
        self._images = [torch.tensor(own) for own in images.values()]
        self.count = every_patient if count is None else count
        self.sample_rate, self._batch_size = batch_size / every_patient, batch_size
        self.bound = options.max_grad_norm if bound is None else bound
        self._options, self._draws = options, draws
        self._engine: PatientGradients | None = None
        # Andrew et al. (2021), section 3: the count of unclipped patients takes a part of the noise multiplier.
        self._count_noise = max(batch_size / 20, options.noise_multiplier)
        self._noise = options.noise_multiplier
        if options.clipping == "adaptive":
            self._noise = (options.noise_multiplier**-2 - (2 * self._count_noise) ** -2) ** -0.5

    def batches(self, steps: int) -> Iterator[Tensor]:
        """One image of each patient drawn, for each step; see `training.loop.StepGradients.batches`."""
        for _ in range(steps):
            drawn = torch.nonzero(self._draws.uniform(len(self._images)) < self.sample_rate).flatten().tolist()
            which = self._draws.uniform(len(drawn)).tolist()
            yield torch.tensor(
                [int(self._images[one][int(u * len(self._images[one]))]) for one, u in zip(drawn, which, strict=True)],
                dtype=torch.int64,
            )

    def fill(self, task: PretextTask, indices: Tensor, views_of: ViewsOf, loss_of: LossOf) -> tuple[Tensor, Views]:
        """The noisy mean of clipped gradients; see `training.loop.StepGradients.fill`."""
        if self._engine is None:
            self._engine = PatientGradients(task.shared)
        parameters = [one for one in task.shared.parameters() if one.requires_grad]
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        losses, norms = [torch.zeros((), dtype=torch.float64)], [torch.zeros(0)]
        views: Views = ()
        for first in range(0, len(indices), self._options.physical_batch):
            part = indices[first : first + self._options.physical_batch]
            views = views_of(part.repeat_interleave(self._options.views))
            loss, found = self._engine.add_clipped(
                partial(loss_of, views), len(part), clipping=self._options.clipping, bound=self.bound
            )
            losses.append(loss.cpu().double() * len(part))
            norms.append(found.cpu())
        self._add_noise(parameters)
        if self._options.clipping == "adaptive":
            self._adapt(torch.cat(norms))
        loss = torch.stack(losses).nan_to_num(0.0, 0.0, 0.0).sum() / max(1, len(indices))
        return loss, views

    def _add_noise(self, parameters: list[torch.nn.Parameter]) -> None:
        deviation = self._noise * self.bound
        sizes = [one.numel() for one in parameters]
        noise = self._draws.normal(sum(sizes)).mul_(deviation)
        for parameter, own in zip(parameters, torch.split(noise, sizes), strict=True):
            assert parameter.grad is not None
            noisy = parameter.grad.double() + own.view_as(parameter).to(parameter.device)
            parameter.grad = noisy.div_(self._batch_size).to(parameter.dtype)

    def _adapt(self, norms: Tensor) -> None:
        """Move the bound by the noisy part of patients below it (algorithm 1 of Andrew et al. 2021)."""
        centred = float((norms <= self.bound).double().sum()) - len(norms) / 2  # one patient changes it by 1/2
        noisy = centred + self._count_noise * float(self._draws.normal(1))
        part = noisy / self._batch_size + 0.5
        self.bound *= math.exp(-self._options.adapt_rate * (part - self._options.quantile))
