"""Per-patient gradients of single layers: their norms, and their weighted sum, from what went in and came back.

A layer that was given ``x`` and whose output's gradient is ``g`` has, for each patient, a gradient that is a product of
the two. Its norm needs no gradient to be written down where few places share a weight (the "ghost norm" of Goodfellow
2015, arXiv 1510.01799; Bu et al. 2022, arXiv 2205.10683, for convolutions), and the weighted sum over patients is the
ordinary gradient of weighted ``g`` (the "book-keeping" of Bu et al. 2023, arXiv 2210.00038): one pass back is enough.

Rows are image by image: the ``m`` rows of one patient (views, patches) lie together, and are one unit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aiseeme_models.backbones.norm import StandardisedConv2d
from aiseeme_models.errors import InputError

_CHUNK_FLOATS = 2**23
"""At most so many double floats (64 MB) of products are written down at once."""
_ROUNDING = 8.0
"""The sum over patients is made in the network's precision, their norms in double. A norm counts as larger by so many
units of rounding of its terms, or weights chosen to cancel would let more through than is counted. On the networks here
that is less than 1e-4 of a norm."""
_LARGEST = 1e8
"""A patient with a larger value in a layer, or coming back to it, counts for nothing: products of such values with tiny
ones lose what single precision cannot hold. Networks that learn stay orders of magnitude below."""


@dataclass(frozen=True)
class Call:
    """One use of a layer in a forward pass: what went in, what came out, and the gradient of the loss to that.

    Attributes:
        x: the input, ``(B * m, ...)``.
        y: the output.
        g: the gradient of the sum over patients of their losses with respect to ``y``.
    """

    x: Tensor
    y: Tensor
    g: Tensor


class PatientLayer(ABC):
    """The gradients of one layer's parameters, for each of ``patients`` patients.

    Args:
        layer: the layer.
        calls: its uses in the pass.
        patients: ``B``.
    """

    def __init__(self, layer: nn.Module, calls: Sequence[Call], patients: int) -> None:
        self.layer, self.calls, self.patients = layer, calls, patients

    @abstractmethod
    def squared_norms(self) -> dict[str, Tensor]:
        """For each parameter's name an upper bound of the squared norm of every patient's gradient, ``(B,)`` float64.

        It is larger than the norm by the rounding of `add_weighted` at most.
        """

    def usable(self) -> Tensor:
        """Which patients' values are within the range in which gradients can be clipped, ``(B,)`` bool."""
        within = [_largest(values) <= _LARGEST for call in self.calls for values in (call.x, call.g)]  # NaN is not
        return torch.stack([rows.view(self.patients, -1).all(1) for rows in within]).all(0)

    @abstractmethod
    def add_weighted(self, weights: dict[str, Tensor]) -> None:
        """Add to each parameter's ``.grad`` the sum of the patients' gradients times ``weights[name]``, ``(B,)``."""

    def _rows(self, weights: Tensor, call: Call) -> Tensor:
        """A patient's weight for each of its rows in a call, ``(B * m, 1, ...)``."""
        repeated = weights.to(call.g.dtype).repeat_interleave(len(call.g) // self.patients)
        return repeated.view(-1, *([1] * (call.g.dim() - 1)))


class _Vectors(PatientLayer):
    """Layers whose parameters are vectors: the patients' gradients are small, and are written down."""

    def __init__(self, layer: nn.Module, calls: Sequence[Call], patients: int) -> None:
        super().__init__(layer, calls, patients)
        self._gradients: dict[str, Tensor] = {}
        for call in calls:
            for name, rows in self.row_gradients(call).items():
                summed = rows.view(patients, -1, rows.shape[1]).sum(1)  # (B, C)
                self._gradients[name] = self._gradients[name] + summed if name in self._gradients else summed

    @abstractmethod
    def row_gradients(self, call: Call) -> dict[str, Tensor]:
        """Each parameter's gradient for every row of a call, ``(B * m, C)``."""

    def squared_norms(self) -> dict[str, Tensor]:
        """See `PatientLayer.squared_norms`."""
        return {name: rows.double().square().sum(1) for name, rows in self._gradients.items()}

    def add_weighted(self, weights: dict[str, Tensor]) -> None:
        """See `PatientLayer.add_weighted`."""
        for name, rows in self._gradients.items():
            _add(self.layer.get_parameter(name), weights[name].to(rows.dtype) @ rows)


class PatientGroupNorm(_Vectors):
    """`torch.nn.GroupNorm` with weight and bias."""

    layer: nn.GroupNorm

    def row_gradients(self, call: Call) -> dict[str, Tensor]:
        """See `_Vectors.row_gradients`."""
        normalised = F.group_norm(call.x, self.layer.num_groups, eps=self.layer.eps)
        return {"weight": (call.g * normalised).flatten(2).sum(2), "bias": call.g.flatten(2).sum(2)}


class PatientLayerNorm(_Vectors):
    """`torch.nn.LayerNorm` over the features of ``(B, D)``."""

    layer: nn.LayerNorm

    def row_gradients(self, call: Call) -> dict[str, Tensor]:
        """See `_Vectors.row_gradients`."""
        normalised = F.layer_norm(call.x, self.layer.normalized_shape, eps=self.layer.eps)
        return {"weight": call.g * normalised, "bias": call.g}


class _Products(PatientLayer):
    """Layers whose gradient is a sum of outer products over a patient's ``T`` places: linear layers, convolutions."""

    @abstractmethod
    def _inputs(self, call: Call, first: int, last: int) -> Tensor:
        """What the weights were multiplied by for patients ``first`` to ``last``, ``(b, T, D)``."""

    @abstractmethod
    def _places(self, values: Tensor) -> Tensor:
        """Something shaped as the output, ``(B, T, O)``."""

    @abstractmethod
    def _gradient(self, call: Call, g: Tensor) -> Tensor:
        """The ordinary gradient of the weight for an output's gradient ``g``."""

    def squared_norms(self) -> dict[str, Tensor]:
        """See `PatientLayer.squared_norms`."""
        found = {"weight": self._weight_norms()}
        if getattr(self.layer, "bias", None) is not None:
            found["bias"] = self._biases().double().square().sum(1)
        return found

    def add_weighted(self, weights: dict[str, Tensor]) -> None:
        """See `PatientLayer.add_weighted`."""
        total: Tensor | None = None
        for call in self.calls:
            gradient = self._gradient(call, call.g * self._rows(weights["weight"], call))
            total = gradient if total is None else total.add_(gradient)
        assert total is not None
        _add(self.layer.get_parameter("weight"), self._through_parametrisation(total))
        if "bias" in weights:
            biases = self._biases()
            _add(self.layer.get_parameter("bias"), weights["bias"].to(biases.dtype) @ biases)

    def _through_parametrisation(self, gradient: Tensor) -> Tensor:
        return gradient

    def _biases(self) -> Tensor:
        return torch.stack([self._places(call.g).sum(1) for call in self.calls]).sum(0)  # (B, O)

    def _weight_norms(self) -> Tensor:
        gradients = [self._places(call.g) for call in self.calls]
        first = self._inputs(self.calls[0], 0, 1)
        places, inputs, filters = sum(g.shape[1] for g in gradients), first.shape[2], gradients[0].shape[2]
        is_ghost = places * (inputs + filters) < inputs * filters
        floats = places * (inputs + places) if is_ghost else places * inputs + inputs * filters
        step = max(1, _CHUNK_FLOATS // floats)
        norms = []
        for start in range(0, self.patients, step):
            end = min(start + step, self.patients)
            a = torch.cat([self._inputs(call, start, end) for call in self.calls], dim=1).double()  # (b, T, D)
            g = torch.cat([one[start:end] for one in gradients], dim=1).double()  # (b, T, O)
            squares = self._chunk_norms(a, g, start, is_ghost=is_ghost).clamp(min=0)
            norms.append((squares.sqrt() + self._rounding * self._terms(a, g)).square())
        return torch.cat(norms)

    @property
    def _rounding(self) -> float:
        return _ROUNDING * float(torch.finfo(self.calls[0].g.dtype).eps)

    def _terms(self, a: Tensor, g: Tensor) -> Tensor:
        """The norms of the terms that a patient's gradient is a sum of, added up, ``(b,)``."""
        terms: Tensor = (a.norm(dim=2) * g.norm(dim=2)).sum(1)
        return terms

    def _chunk_norms(self, a: Tensor, g: Tensor, first: int, *, is_ghost: bool) -> Tensor:
        """Squared norms ``(b,)`` of ``g^T a``, ``(b, O, D)``, written down or not, of patients from ``first`` on.

        In double precision: weights can be made so that squares of what single precision holds leave its range.
        """
        if is_ghost:
            return (torch.bmm(a, a.transpose(1, 2)) * torch.bmm(g, g.transpose(1, 2))).flatten(1).sum(1)
        return torch.bmm(g.transpose(1, 2), a).flatten(1).square().sum(1)


class PatientLinear(_Products):
    """`torch.nn.Linear` on ``(B * m, I)``."""

    layer: nn.Linear

    def _inputs(self, call: Call, first: int, last: int) -> Tensor:
        return self._places(call.x)[first:last]

    def _places(self, values: Tensor) -> Tensor:
        return values.reshape(self.patients, -1, values.shape[-1])

    def _gradient(self, call: Call, g: Tensor) -> Tensor:
        return g.flatten(0, -2).T @ call.x.flatten(0, -2)


class PatientConv2d(_Products):
    """`torch.nn.Conv2d` without groups, zero-padded."""

    layer: nn.Conv2d

    def __init__(self, layer: nn.Module, calls: Sequence[Call], patients: int) -> None:
        super().__init__(layer, calls, patients)
        if self.layer.groups != 1 or self.layer.padding_mode != "zeros" or isinstance(self.layer.padding, str):
            raise InputError(
                "differential privacy has no rule for convolutions with groups or other padding than zeros"
            )

    def _inputs(self, call: Call, first: int, last: int) -> Tensor:
        layer, rows = self.layer, len(call.x) // self.patients
        x = call.x[first * rows : last * rows].permute(0, 2, 3, 1)  # (b * m, H, W, C), not copied if channels are last
        assert not isinstance(layer.padding, str)
        (bottom, right), (height, width), (down, across) = layer.padding, layer.kernel_size, layer.stride
        (apart_down, apart_across) = layer.dilation
        if (height, width, bottom, right) != (1, 1, 0, 0):
            x = F.pad(x, (0, 0, right, right, bottom, bottom)).contiguous()
        out_height, out_width = call.y.shape[2:]
        n, h, w, c = x.stride()
        windows = x.as_strided(
            (len(x), out_height, out_width, height, width, x.shape[3]),
            (n, h * down, w * across, h * apart_down, w * apart_across, c),
            x.storage_offset(),
        )
        return windows.reshape(last - first, rows * out_height * out_width, -1)

    def _places(self, values: Tensor) -> Tensor:
        return values.permute(0, 2, 3, 1).reshape(self.patients, -1, values.shape[1])

    def _gradient(self, call: Call, g: Tensor) -> Tensor:
        layer = self.layer
        _, gradient, _ = torch.ops.aten.convolution_backward(
            g,
            call.x,
            layer.weight,
            None,
            layer.stride,
            layer.padding,
            layer.dilation,
            False,
            [0, 0],
            1,
            [False, True, False],
        )
        assert isinstance(gradient, Tensor)
        return gradient


class PatientStandardisedConv2d(PatientConv2d):
    """`StandardisedConv2d`: the gradient goes on from the standardised filter ``w`` to the filter that is trained.

    With ``c`` the centred filter, ``s = 1 / sqrt(|c|^2 + eps)`` and ``w = s c``, a gradient ``G`` to ``w`` becomes
    ``s (G - mean(G) - s^2 c <c, G>)``; ``<c, G>`` is the sum over places of ``g`` times the output, over ``s``.
    """

    layer: StandardisedConv2d

    def __init__(self, layer: nn.Module, calls: Sequence[Call], patients: int) -> None:
        super().__init__(layer, calls, patients)
        if self.layer.bias is not None:
            raise InputError("differential privacy has no rule for standardised convolutions with a bias")
        filters = self.layer.weight.detach().double().flatten(1)
        self._centred = filters - filters.mean(dim=1, keepdim=True)  # (O, D)
        self._squared = self._centred.square().sum(1)  # (O,)
        self._scale = torch.rsqrt(self._squared + 1e-6)  # (O,)
        self._outputs = [self._places(call.y) for call in calls]

    def _terms(self, a: Tensor, g: Tensor) -> Tensor:
        """See `_Products._terms`; the gradient goes on through the scale of each filter."""
        return super()._terms(a, g * self._scale)

    def _chunk_norms(self, a: Tensor, g: Tensor, first: int, *, is_ghost: bool) -> Tensor:
        """See `_Products._chunk_norms`."""
        if is_ghost:
            squares = (torch.bmm(torch.bmm(a, a.transpose(1, 2)), g) * g).sum(1)  # (b, O)
            sums = torch.bmm(a.sum(2).unsqueeze(1), g).squeeze(1)  # (b, O)
        else:
            written = torch.bmm(g.transpose(1, 2), a)  # (b, O, D)
            squares, sums = written.square().sum(2), written.sum(2)
        y = torch.cat([one[first : first + len(g)] for one in self._outputs], dim=1).double()  # (b, T, O)
        inputs, s2 = self._centred.shape[1], self._scale.square()
        product = (g * y).sum(1) / self._scale  # <c, G>
        rest = squares - sums.square() / inputs - (2 * s2 - s2.square() * self._squared) * product.square()
        return (s2 * rest.clamp(min=0)).sum(1)

    def _through_parametrisation(self, gradient: Tensor) -> Tensor:
        flat, scale = gradient.double().flatten(1), self._scale.unsqueeze(1)
        product = (self._centred * flat).sum(1, keepdim=True)
        through = scale * (flat - flat.mean(1, keepdim=True) - scale.square() * self._centred * product)
        return through.to(gradient.dtype).view_as(gradient)


_RULES: dict[type[nn.Module], Callable[[nn.Module, Sequence[Call], int], PatientLayer]] = {
    nn.Conv2d: PatientConv2d,
    StandardisedConv2d: PatientStandardisedConv2d,
    nn.Linear: PatientLinear,
    nn.GroupNorm: PatientGroupNorm,
    nn.LayerNorm: PatientLayerNorm,
}


def trained_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers of ``module`` that have parameters of their own, with their names.

    Raises:
        InputError: one has no rule here, as batch normalisation, whose statistics mix patients.
    """
    for name, layer in module.named_modules():
        if any(True for _ in layer.parameters(recurse=False)):
            if type(layer) not in _RULES:
                raise InputError(f"differential privacy has no rule for {type(layer).__name__} (at {name})")
            yield name, layer


def patient_layer(layer: nn.Module, calls: Sequence[Call], patients: int) -> PatientLayer:
    """The patients' gradients of a layer that `trained_layers` gave."""
    return _RULES[type(layer)](layer, calls, patients)


def _largest(values: Tensor) -> Tensor:
    """The largest magnitude in each row of ``(N, ...)``, ``(N,)``."""
    places = tuple(range(1, values.dim()))
    return torch.maximum(values.amax(places), -values.amin(places))


def _add(parameter: nn.Parameter, gradient: Tensor) -> None:
    gradient = gradient.view_as(parameter)
    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
