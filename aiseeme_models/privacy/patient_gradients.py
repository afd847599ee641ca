"""The clipped sum of the patients' gradients, in one pass forward and one back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from aiseeme_models.privacy.clipping import Clipping, factors
from aiseeme_models.privacy.layers import Call, PatientLayer, patient_layer, trained_layers


class PatientGradients:
    """Clips what each patient contributes to the gradients of a module.

    Args:
        module: what is trained; every layer in it that has parameters must have a rule in `privacy.layers`.

    Raises:
        InputError: one has none.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._layers = list(trained_layers(module))

    def add_clipped(
        self, loss: Callable[[], Tensor], patients: int, *, clipping: Clipping, bound: float
    ) -> tuple[Tensor, Tensor]:
        """Add to every parameter's ``.grad`` the sum over patients of their clipped gradients.

        Args:
            loss: computes the mean over patients of their losses. Every tensor that goes through a layer has its rows
                patient by patient, equally many of each, and no patient's rows touch another's.
            patients: ``B``, at least 1.
            clipping: see `privacy.clipping.factors`.
            bound: largest norm of a patient's gradient.

        Returns:
            The loss, and the norm of every patient's gradient before clipping, ``(B,)``. Both are as private as images.
        """
        uses: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name, _ in self._layers}
        with self._recorded(uses):
            value = loss()
        outputs = [y for name, _ in self._layers for _, y in uses[name]]
        gradients = iter(torch.autograd.grad(value * patients, outputs, allow_unused=True))
        with torch.no_grad(), _single_precision():
            return value.detach(), self._add(uses, gradients, patients, clipping, bound)

    def _add(
        self,
        uses: dict[str, list[tuple[Tensor, Tensor]]],
        gradients: Iterator[Tensor | None],
        patients: int,
        clipping: Clipping,
        bound: float,
    ) -> Tensor:
        calls = {
            name: [Call(x, y.detach(), g) for (x, y), g in zip(uses[name], gradients, strict=False) if g is not None]
            for name, _ in self._layers
        }
        found, squares = self._squares(calls, patients)
        whole = torch.stack([norms for of_layer in squares for norms in of_layer.values()]).sum(0)  # (B,)
        usable = torch.stack([whole.isfinite(), *(layer.usable() for layer in found)]).all(0)
        if not usable.all():
            # Such a patient counts for nothing: one image must not spoil a round, nor tell that it is there.
            calls = {name: [_without(call, usable) for call in of_layer] for name, of_layer in calls.items()}
            found, squares = self._squares(calls, patients)
        flat = {(place, own): norms for place, of_layer in enumerate(squares) for own, norms in of_layer.items()}
        clipped = factors(flat, clipping, bound)
        for place, layer in enumerate(found):
            layer.add_weighted({own: clipped[place, own] for own in squares[place]})
        return whole.sqrt()

    def _squares(
        self, calls: dict[str, list[Call]], patients: int
    ) -> tuple[list[PatientLayer], list[dict[str, Tensor]]]:
        found = [patient_layer(layer, calls[name], patients) for name, layer in self._layers if calls[name]]
        return found, [layer.squared_norms() for layer in found]

    @contextmanager
    def _recorded(self, uses: dict[str, list[tuple[Tensor, Tensor]]]) -> Iterator[None]:
        """Keep what goes in and out of the layers; their parameters take no gradient of their own."""
        handles = []
        wanted = {parameter: parameter.requires_grad for parameter in self._module.parameters()}

        def recorder(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            def record(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
                if not torch.is_grad_enabled():  # a target's pass
                    return
                if not output.requires_grad:  # the first layers: nothing before them takes a gradient
                    output.requires_grad_()
                uses[name].append((inputs[0].detach(), output))

            return record

        try:
            for parameter in wanted:
                parameter.requires_grad_(False)
            for name, layer in self._layers:
                handles.append(layer.register_forward_hook(recorder(name)))
            yield
        finally:
            for handle in handles:
                handle.remove()
            for parameter, before in wanted.items():
                parameter.requires_grad_(before)


def _single_precision() -> AbstractContextManager[None]:
    """No TF32 in convolutions: it would keep 10 bits of a clipped gradient, of which its norm knows nothing."""
    cudnn = torch.backends.cudnn
    context: AbstractContextManager[None] = cudnn.flags(
        enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False
    )
    return context


def _without(call: Call, usable: Tensor) -> Call:
    """``call`` with zeros in the rows of patients that are not ``usable`` ``(B,)``."""

    def kept(rows: Tensor) -> Tensor:
        mask = usable.repeat_interleave(len(rows) // len(usable)).view(-1, *([1] * (rows.dim() - 1)))
        return torch.where(mask, rows, 0.0)

    return Call(kept(call.x), kept(call.y), kept(call.g))
