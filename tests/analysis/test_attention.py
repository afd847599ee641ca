"""Class activation maps equal MONAI's and a decomposition in NumPy; energy and overlap equal loops over pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.visualize import GradCAM
from torch import Tensor, nn

from aiseeme_models.analysis.attention import energy_inside, mask_share, overlap
from aiseeme_models.analysis.cam import activation_maps, eigen_cam, grad_cam
from aiseeme_models.backbones import Backbone, build_backbone, initialise
from aiseeme_models.errors import InputError


class Classifier(nn.Module):
    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


@pytest.fixture(scope="module")
def network() -> Classifier:
    backbone = build_backbone("resnet-tiny", norm="group", in_channels=3)
    source = torch.Generator().manual_seed(0)
    initialise(backbone, source)
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(backbone.feature_dim, 16), nn.ReLU(), nn.Linear(16, 5))
    return Classifier(backbone, head).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_grad_cam_is_monais_up_to_its_scaling(network: Classifier, images: Tensor) -> None:
    classes = torch.tensor([0, 3, 1, 4])
    ours = grad_cam(network.backbone, network.head, images, classes)
    assert ours.shape == (4, 4, 4) and (ours >= 0).all()
    reference = GradCAM(
        network, target_layers="backbone.layer4", postprocessing=lambda one: one, upsampler=lambda s: lambda one: one
    )
    for index, wanted in enumerate(classes):
        theirs = reference(images[index : index + 1], class_idx=int(wanted))[0, 0]
        torch.testing.assert_close(ours[index], theirs.relu().detach(), rtol=1e-4, atol=1e-7)


def test_with_a_linear_head_it_is_the_class_activation_map(network: Classifier, images: Tensor) -> None:
    """Zhou et al. 2016: the feature map weighted by the class's row of the last layer."""
    head = nn.Linear(network.backbone.feature_dim, 3)
    classes = torch.tensor([2, 0, 1, 2])
    ours = grad_cam(network.backbone, head, images, classes)
    with torch.no_grad():
        features = network.backbone.forward_map(images)
        theirs = torch.einsum("bd,bdhw->bhw", head.weight[classes], features).relu() / features[0, 0].numel()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_eigen_cam_is_the_first_singular_direction(network: Classifier, images: Tensor) -> None:
    ours = eigen_cam(network.backbone, network.head, images, torch.zeros(4, dtype=torch.long))
    with torch.no_grad():
        features = network.backbone.forward_map(images).double().numpy()
    for index, one in enumerate(features):
        rows = one.reshape(one.shape[0], -1).T
        values, vectors = np.linalg.eigh(rows.T @ rows)
        projected = rows @ vectors[:, -1]
        projected *= np.sign(projected.sum())
        np.testing.assert_allclose(
            ours[index].numpy().ravel(), np.maximum(projected, 0), rtol=1e-4, atol=1e-5 * values[-1] ** 0.5
        )


@pytest.mark.parametrize("kind", ["grad-cam", "eigen-cam"])
def test_networks_are_left_as_they_were(kind: str, network: Classifier, images: Tensor) -> None:
    network.backbone.train()
    network.zero_grad(set_to_none=True)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():  # also where nobody asked for gradients
        activation_maps[kind](network.backbone, network.head, images, torch.zeros(4, dtype=torch.long))
    assert network.backbone.training
    assert all(parameter.grad is None for parameter in network.parameters())
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name])
    network.eval()


def drawn() -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(2)
    maps = torch.rand(3, 8, 8, generator=source)
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[0, 2:5, 1:7], masks[1], masks[2, 0, 0] = True, True, True
    return maps, masks


def test_energy_and_overlap_are_those_of_a_loop_over_pixels() -> None:
    maps, masks = drawn()
    for one, mask, energy, iou in zip(maps, masks, energy_inside(maps, masks), overlap(maps, masks), strict=True):
        places = [(row, column) for row in range(8) for column in range(8)]
        inside = sum(float(one[place]) for place in places if mask[place])
        assert float(energy) == pytest.approx(inside / sum(float(one[place]) for place in places), rel=1e-5)
        hot = {place for place in places if float(one[place]) >= 0.5 * float(one.max())}
        truth = {place for place in places if mask[place]}
        assert float(iou) == pytest.approx(len(hot & truth) / len(hot | truth))


def test_a_map_that_knows_nothing_has_the_masks_share() -> None:
    _, masks = drawn()
    torch.testing.assert_close(energy_inside(torch.ones(3, 4, 4), masks), mask_share(masks))
    assert mask_share(masks).tolist() == pytest.approx([18 / 64, 1.0, 1 / 64])


def test_a_map_of_zeros_has_no_figure() -> None:
    _, masks = drawn()
    assert energy_inside(torch.zeros(3, 4, 4), masks).isnan().all()
    assert overlap(torch.zeros(3, 4, 4), masks).isnan().all()


def test_maps_of_another_size_are_stretched_over_the_image() -> None:
    half = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    mask = torch.zeros(1, 100, 100, dtype=torch.bool)
    mask[:, :, :50] = True
    assert float(energy_inside(half, mask)) == pytest.approx(0.875, abs=0.01)
    with pytest.raises(InputError, match="1 maps, but 2 masks"):
        energy_inside(half, mask.expand(2, -1, -1))
