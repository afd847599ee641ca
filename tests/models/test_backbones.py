"""Backbones take torchvision's weights, suit per-sample gradients, and start from a given random stream."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from aiseeme_models.backbones import backbones, build_backbone, initialise
from aiseeme_models.errors import InputError
from aiseeme_models.seeding import generator


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_torchvisions_weights_give_torchvisions_features(name):
    theirs = getattr(torchvision.models, name)(weights=None)
    initialise(theirs, generator(3))
    with torch.no_grad():
        for index, buffer in enumerate(theirs.buffers()):
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5, generator=generator(index))
    theirs.fc = nn.Identity()
    ours = build_backbone(name, norm="batch", in_channels=3)
    assert set(ours.state_dict()) == set(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64, generator=generator(4))
    for train in (False, True):
        expected, features = theirs.train(train)(images), ours.train(train)(images)
        assert features.shape == (2, ours.feature_dim)
        scale = expected.abs().max().item()
        torch.testing.assert_close(features, expected, atol=1e-5 * scale, rtol=1e-4)
    assert torch.equal(ours.bn1.running_mean, theirs.bn1.running_mean)


@pytest.mark.parametrize("name", list(backbones))
@pytest.mark.parametrize("norm", ["group", "group-ws", "batch", "batch-local"])
def test_full_backward_hooks_work_on_every_layer(name, norm):
    # What Opacus' GradSampleModule does; torchvision's in-place residual additions make autograd raise here.
    backbone = build_backbone(name, norm=norm, in_channels=1)
    seen = set()
    for path, layer in backbone.named_modules():
        layer.register_full_backward_hook(lambda module, grad_in, grad_out, path=path: seen.add(path))
    images = torch.randn(2, 1, 32, 32, generator=generator(1), requires_grad=True)
    backbone(images).sum().backward()
    assert seen == {path for path, _ in backbone.named_modules()}


def test_pooled_features_are_the_mean_of_the_feature_map():
    backbone = build_backbone("resnet-small", norm="group", in_channels=3)
    images = torch.randn(2, 3, 40, 40, generator=generator(1))
    features = backbone.forward_map(images)
    assert features.shape == (2, 256, 3, 3)  # stride 16
    torch.testing.assert_close(backbone(images), features.mean(dim=(2, 3)))


def test_initialisation_depends_on_its_generator_only_and_covers_every_tensor():
    def fresh(seed: int, disturb: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(disturb)
        backbone = build_backbone("resnet-small", norm="batch", in_channels=3)
        for tensor in (*backbone.parameters(), *backbone.buffers()):
            tensor.data.fill_(7)
        initialise(backbone, generator(seed))
        return backbone.state_dict()

    first, again, other = fresh(1, 10), fresh(1, 20), fresh(2, 10)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    assert not any(bool((tensor == 7).any()) for tensor in first.values())


def test_initialisation_refuses_a_layer_without_a_rule():
    with pytest.raises(TypeError, match="PReLU"):
        initialise(nn.Sequential(nn.PReLU()), generator(0))


def test_group_norm_backbones_treat_every_image_alone():
    backbone = build_backbone("resnet-small", norm="group", in_channels=3).train()
    images = torch.randn(3, 3, 32, 32, generator=generator(1))
    together = backbone(images)
    alone = torch.cat([backbone(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_an_unknown_backbone_is_refused_with_the_closest_name():
    with pytest.raises(InputError, match="did you mean 'resnet50'"):
        build_backbone("resnet5", norm="group", in_channels=3)
