"""An empirical lower bound of ε from one training run, to set beside the one that is claimed.

Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run", 2023 (arXiv 2305.08846). Canaries, each a
patient of its own, are put into the training by the toss of a coin. Whoever sees every noisy gradient guesses which
were in it. More right guesses than ε allows prove that the protection is not what it is said to be. That they do not
come proves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aiseeme_models.images.augmentation import BatchAugmentation
from aiseeme_models.images.augmentation_options import AugmentationOptions
from aiseeme_models.pretext.base import PretextTask
from aiseeme_models.privacy.accounting import epsilon
from aiseeme_models.privacy.noise import Draws, SecretDraws
from aiseeme_models.privacy.options import PrivacyOptions
from aiseeme_models.privacy.spending import Spend
from aiseeme_models.privacy.steps import PrivateSteps
from aiseeme_models.seeding import generator
from aiseeme_models.training.loop import LossOf, StepGradients, Views, ViewsOf, train_round
from aiseeme_models.training.options import TrainingOptions

IMAGES_OF_A_CANARY = 8
_GUESSED = (1.0, 0.5, 0.25, 0.125)  # parts of the canaries that are guessed at; the surest first
_LARGEST = 20.0


@dataclass(frozen=True)
class AuditReport:
    """What an audit found.

    Attributes:
        claimed: ε of the audited training by accounting.
        lower_bound: the largest ε that the guesses refute, at ``confidence``.
        delta: δ of both.
        confidence: of the lower bound.
        canaries: how many there were.
        guesses, right: of the part of the canaries that the bound comes from.
        loss_auc: how well the canaries' losses alone, after the training, tell which were in it (0.5: not at all).
    """

    claimed: float
    lower_bound: float
    delta: float
    confidence: float
    canaries: int
    guesses: int
    right: int
    loss_auc: float

    @property
    def refutes(self) -> bool:
        """Whether the guesses are more often right than the claimed ε allows."""
        return self.lower_bound > self.claimed


def audit(
    task: PretextTask,
    options: PrivacyOptions,
    *,
    channels: int,
    size: int,
    steps: int,
    canaries: int = 128,
    background: int = 16,
    confidence: float = 0.95,
    seed: int = 0,
    draws: Draws | None = None,
    make_steps: Callable[..., StepGradients] = PrivateSteps,
) -> AuditReport:
    """Train ``task`` on made-up images of which some are canaries, and try to tell which.

    Every patient is in every step: the sampling of patients, which hides more, is tested elsewhere, and here it would
    only weaken the guesses. A canary has several images, of which a step may use one.

    Args:
        task: with the weights to begin with; is trained.
        options: the ``[privacy]`` table whose protection is audited.
        channels, size: of the images.
        steps: how many are taken.
        canaries: patients whose presence is guessed at; each is in the training with probability 1/2.
        background: patients that are in it in any case.
        confidence: of the lower bound.
        seed: of the made-up images and of the coins.
        draws: the noise; default: as at a site.
        make_steps: what is audited.
    """
    patients, pixels = _patients(canaries, background, channels, size, seed)
    present = torch.rand(canaries, generator=generator(seed, "coins")) < 0.5  # (m,)
    inside = [index for index, name in enumerate(patients) if name >= canaries or bool(present[name])]
    every = canaries + background
    private = make_steps([str(patients[index]) for index in inside], every, every, options, draws or SecretDraws())
    known = torch.stack([pixels[patients == name][0] for name in range(every)])  # a patient's images are nearly alike
    plain = BatchAugmentation(AugmentationOptions(), (0.5,) * channels, (0.25,) * channels)  # what a random crop hides
    attacker = _Attacker(private, task, known, canaries, options, plain)  # is not what is audited
    train_round(
        task,
        _Pixels(pixels[inside]),
        TrainingOptions(batch_size=every, local_epochs=steps, optimizer="sgd", momentum=0.0, lr=0.05, precision="fp32"),
        augmentation=plain,
        seed=seed,
        stage_progress=(0.0, 1.0),
        device=torch.device("cpu"),
        gradients=attacker,
    )
    tries = [one for scores in attacker.scores for one in _right_guesses(scores, present)]
    share = (1 - confidence) / len(tries)  # several tries: each may be wrong less often
    bounds = [lower_bound(canaries, guesses, right, share, options.delta) for guesses, right in tries]
    best = max(range(len(tries)), key=lambda one: bounds[one])
    claimed = epsilon([Spend(options.noise_multiplier, 1.0, steps)], options.delta).value
    auc = _auc(-attacker.losses(), present)
    return AuditReport(claimed, bounds[best], options.delta, confidence, canaries, *tries[best], auc)


def lower_bound(canaries: int, guesses: int, right: int, significance: float, delta: float) -> float:
    """The largest ε that ``right`` of ``guesses`` refute (Steinke et al. 2023, section 5 and appendix D); 0 if none is.

    Args:
        canaries: how many coins were tossed.
        guesses: of how many a guess was made.
        right: how many of these were right.
        significance: probability with which a true ε may be refuted.
        delta: δ.
    """
    if _p_value(canaries, guesses, right, 0.0, delta) > significance:
        return 0.0
    low, high = 0.0, _LARGEST
    while high - low > 1e-3:
        middle = (low + high) / 2
        if _p_value(canaries, guesses, right, middle, delta) > significance:
            high = middle
        else:
            low = middle
    return low


def _p_value(canaries: int, guesses: int, right: int, eps: float, delta: float) -> float:
    """How likely so many right guesses are at most, under (ε, δ)-differential privacy (their theorem 5.2)."""
    from scipy.stats import binom

    q = 1 / (1 + math.exp(-eps))
    beta = float(binom.sf(right - 1, guesses, q))
    fewer = np.arange(1, right + 1)
    tails = np.cumsum(binom.pmf(right - fewer, guesses, q)) / fewer
    alpha = float(tails.max(initial=0.0))
    return min(1.0, beta + alpha * delta * 2 * canaries)


class _Attacker:
    """Steps as they are, and beside them what one makes of it who sees each noisy gradient and knows all but the coins.

    What patients add who are in it in any case is taken away. Which canaries are in the rest is a linear regression on
    their gradients, with two beliefs of how much noise there is: as much as is claimed, and hardly any.
    """

    def __init__(
        self,
        steps: StepGradients,
        task: PretextTask,
        known: Tensor,
        canaries: int,
        options: PrivacyOptions,
        augmentation: BatchAugmentation,
    ) -> None:
        self._steps, self._task, self._known, self._options = steps, task, known, options
        self._augmentation = augmentation
        self.count = steps.count
        noise = options.noise_multiplier**2
        self._ridges = (4 * noise, 1e-4)  # of a coin, whose variance is 1/4
        self.scores = torch.zeros(len(self._ridges), canaries, dtype=torch.float64)

    def batches(self, steps: int) -> Iterator[Tensor]:
        return self._steps.batches(steps)

    def fill(self, task: PretextTask, indices: Tensor, views_of: ViewsOf, loss_of: LossOf) -> tuple[Tensor, Views]:
        bound = getattr(self._steps, "bound", self._options.max_grad_norm)
        _, own = self._each()  # (M, P), of the weights that the step begins with
        own *= (1 / own.norm(dim=1, keepdim=True)).clamp(max=1 / bound)  # the clipped ones, over the bound
        result = self._steps.fill(task, indices, views_of, loss_of)
        seen = torch.cat([weight.grad.flatten() for weight in task.shared.parameters() if weight.grad is not None])
        canaries = own[: self.scores.shape[1]]
        rest = seen * (self.count / bound) - own[len(canaries) :].sum(0) - canaries.sum(0) / 2  # coins less their mean
        gram, along = (canaries @ canaries.T).double(), (canaries @ rest).double()
        for score, ridge in zip(self.scores, self._ridges, strict=True):
            score += torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=torch.float64), along)
        return result

    def losses(self) -> Tensor:
        """Each canary's loss under the weights as they are, ``(m,)``."""
        return self._each()[0][: self.scores.shape[1]]

    def _each(self) -> tuple[Tensor, Tensor]:
        """Loss ``(M,)`` and gradient ``(M, P)`` of every patient that may be there, one at a time."""
        parameters = list(self._task.shared.parameters())
        losses, rows = [], []
        for pixels in torch.split(self._known, 1):
            loss = self._task.loss(self._task.views(pixels, self._augmentation, generator(0)), generator(0))
            found = torch.autograd.grad(loss, parameters, materialize_grads=True)
            losses.append(loss.detach())
            rows.append(torch.cat([gradient.flatten() for gradient in found]))
        return torch.stack(losses), torch.stack(rows)


class _Pixels:
    def __init__(self, pixels: Tensor) -> None:
        self._pixels = pixels

    def __len__(self) -> int:
        return len(self._pixels)

    def batch(self, indices: Tensor) -> Tensor:
        return self._pixels[indices]


def _patients(canaries: int, background: int, channels: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Whose each image is, ``(N,)``, canaries first, and the images ``(N, C, S, S)`` uint8.

    A canary's images are nine random colours in a grid, alike wherever a task cuts its patches, with a little noise of
    their own; the background has one image each.
    """
    random = generator(seed, "canaries")
    count = canaries + background
    coarse = torch.randint(0, 256, (count, channels, 3, 3), generator=random).float()
    pattern = torch.nn.functional.interpolate(coarse, size=(size, size))
    times = torch.tensor([IMAGES_OF_A_CANARY] * canaries + [1] * background)
    pixels = pattern.repeat_interleave(times, dim=0)
    pixels += torch.randn(pixels.shape, generator=random)
    return torch.arange(count).repeat_interleave(times), pixels.clamp(0, 255).to(torch.uint8)


def _right_guesses(scores: Tensor, present: Tensor) -> list[tuple[int, int]]:
    """Numbers of guesses, and how many of these are right: half of them at each end of the scores."""
    order = scores.argsort()
    found = []
    for part in _GUESSED:
        half = max(1, int(len(scores) * part) // 2)
        found.append((2 * half, int((~present[order[:half]]).sum() + present[order[-half:]].sum())))
    return found


def _auc(scores: Tensor, present: Tensor) -> float:
    """Area under the ROC curve of telling who was present."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(present.numpy(), scores.double().numpy()))
