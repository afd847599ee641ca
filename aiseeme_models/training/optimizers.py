"""Optimisers by name, and their state as a flat dict of tensors that a site can keep between rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from aiseeme_models.errors import InputError
from aiseeme_models.registry import Registry


@dataclass(frozen=True)
class OptimizerKind:
    """An optimiser and its defaults.

    Attributes:
        build: makes it from parameter groups, the learning rate and the momentum. A group's ``"adapt"`` is False for
            biases and normalisation.
        lr: default learning rate for batches of about 64.
        weight_decay: default weight decay (never applied to biases and normalisation).
    """

    build: Callable[[list[dict[str, Any]], float, float], Optimizer]
    lr: float
    weight_decay: float


class LARS(Optimizer):
    """SGD with momentum whose step is scaled to each layer's weights (You et al. 2017, arXiv 1708.03888).

    ``v = m v + lr * trust * ||w|| / ||g + wd w|| * (g + wd w); w -= v``, as in SimCLR and BYOL: groups with ``adapt``
    False (biases and normalisation) take plain momentum steps.

    Args:
        params: parameters or groups.
        lr: learning rate.
        momentum: m.
        weight_decay: wd.
        trust: the trust coefficient.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": True}
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; parameters without a gradient are left alone."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            pairs = [(weight, weight.grad) for weight in group["params"] if weight.grad is not None]
            if pairs:
                self._step_group(group, [weight for weight, _ in pairs], [gradient for _, gradient in pairs])
        return loss

    def _step_group(self, group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor]) -> None:
        updates = torch._foreach_add(gradients, weights, alpha=group["weight_decay"])
        if group["adapt"]:
            ratios = []
            for of_weight, of_update in zip(torch._foreach_norm(weights), torch._foreach_norm(updates), strict=True):
                ratio = group["trust"] * of_weight / of_update
                ratios.append(torch.where((of_weight > 0) & (of_update > 0), ratio, torch.ones_like(ratio)))
            torch._foreach_mul_(updates, ratios)
        torch._foreach_mul_(updates, group["lr"])
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        velocities = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, updates)
        torch._foreach_sub_(weights, velocities)


def _without_adapt(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in group.items() if key != "adapt"} for group in groups]


def _sgd(groups: list[dict[str, Any]], lr: float, momentum: float) -> Optimizer:
    return SGD(_without_adapt(groups), lr=lr, momentum=momentum, foreach=True)


def _adamw(groups: list[dict[str, Any]], lr: float, momentum: float) -> Optimizer:
    return AdamW(_without_adapt(groups), lr=lr, betas=(momentum, 0.999), fused=True)


def _lars(groups: list[dict[str, Any]], lr: float, momentum: float) -> Optimizer:
    return LARS(groups, lr=lr, momentum=momentum)


optimizers: Registry[OptimizerKind] = Registry("optimizer")
optimizers.register("sgd")(OptimizerKind(_sgd, lr=0.05, weight_decay=1e-4))
optimizers.register("lars")(OptimizerKind(_lars, lr=0.3, weight_decay=1e-6))
optimizers.register("adamw")(OptimizerKind(_adamw, lr=1e-3, weight_decay=1e-4))


def build_optimizer(name: str, module: nn.Module, *, lr: float, weight_decay: float, momentum: float) -> Optimizer:
    """The optimiser called ``name`` over ``module``; vectors (biases, normalisation) are not decayed.

    Raises:
        InputError: no such optimiser.
    """
    matrices = [weight for weight in module.parameters() if weight.ndim > 1]
    vectors = [weight for weight in module.parameters() if weight.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": weight_decay, "adapt": True},
        {"params": vectors, "weight_decay": 0.0, "adapt": False},
    ]
    return optimizers[name].build([group for group in groups if group["params"]], lr, momentum)


def optimizer_tensors(optimizer: Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The optimiser's state as contiguous CPU copies called ``<parameter>/<slot>``."""
    tensors = {}
    for name, weight in module.named_parameters():
        for slot, value in optimizer.state.get(weight, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{slot}"] = value.detach().to("cpu", copy=True).contiguous()
    return tensors


def load_optimizer_tensors(optimizer: Optimizer, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put `optimizer_tensors` back.

    Raises:
        InputError: the state is of other parameters.
    """
    weights = dict(module.named_parameters())
    for key, value in tensors.items():
        name, _, slot = key.rpartition("/")
        weight = weights.get(name)
        if weight is None or (value.ndim > 0 and value.shape != weight.shape):
            raise InputError(f"the kept optimiser state does not fit the task: {key!r} has no such parameter")
        if value.ndim == 0 and slot == "step":
            fused = bool(optimizer.defaults.get("fused"))
            optimizer.state[weight][slot] = value.to(weight.device if fused else "cpu", copy=True)
        else:
            optimizer.state[weight][slot] = torch.empty_like(weight).copy_(value)
