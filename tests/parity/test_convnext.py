"""The maps projector: equal to the public class (fixtures), and every tensor of it counts."""

import json
import re

import numpy as np
import pytest
import timm
import torch
from release import script

from mindtuner.config import load_config
from mindtuner.towers.convnext_maps import ConvNextMaps, MapsNetwork

parity = script("parity/convnext")


@pytest.fixture(scope="module")
def small():
    return parity.read_fixture()


@pytest.fixture(scope="module")
def identity(tmp_path_factory, small):
    path = parity.write_checkpoint(tmp_path_factory.mktemp("same") / "same.pth", small[0])
    return ConvNextMaps(path, side=parity.SIDE).identity


def test_maps_are_those_of_the_public_class(tmp_path, small):
    weights, images, features, about = small
    assert re.fullmatch("[0-9a-f]{40}", about["commit"]) and features.std() > 0.1
    encoder = ConvNextMaps(parity.write_checkpoint(tmp_path / "small.pth", weights), side=parity.SIDE)
    found = encoder.maps(images)
    assert found.shape == features.shape == (3, *encoder.shape) and found.dtype == np.float32
    np.testing.assert_allclose(found, features.numpy(), atol=1e-4)
    np.testing.assert_allclose(encoder.maps((images * 255).round().to(torch.uint8)), found, atol=1e-4)


KINDS = {re.sub(r"\.\d+(?=\.)", "", key): key for key in sorted(parity.read_fixture()[0])}  # the last tensor of each


@pytest.mark.parametrize("key", KINDS.values(), ids=KINDS)
def test_every_kind_of_tensor_counts_for_maps_and_identity(tmp_path, small, key, identity):
    """None can be overlooked, and a cache of other weights is told apart."""
    weights, images, features, _ = small
    changed = {**weights, key: weights[key].flip(0) * 1.5 + 0.1}
    encoder = ConvNextMaps(parity.write_checkpoint(tmp_path / "changed.pth", changed), side=parity.SIDE)
    assert not np.allclose(encoder.maps(images), features.numpy(), atol=1e-4)
    assert {name for name in identity if identity[name] != encoder.identity[name]} == {"weights"}


def test_at_paper_size_keys_and_shapes_are_the_public_class_s():
    shapes = json.loads(parity.SHAPES.read_text(encoding="utf-8"))["shapes"]
    network = MapsNetwork.like({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    assert (network.depths, network.dims, network.widths) == ((3, 3, 27, 3), (256, 512, 1024, 2048), (512, 512, 512))
    state = network.state_dict()
    assert {name: list(state[key].shape) for name, key in network.by_released_key().items()} == shapes
    with torch.device("meta"):
        timms = timm.create_model("convnext_xlarge", num_classes=0, head_norm_first=True).state_dict()
    assert {name: tensor.shape for name, tensor in network.trunk.state_dict().items()} == {
        name: tensor.shape for name, tensor in timms.items() if not name.endswith(".gamma")
    }  # the release has no scales
    model = load_config("paper").model
    with torch.device("meta"):
        out = network(torch.empty(1, 3, 224, 224))
    assert out.shape == (1, model.feature_positions, model.feature_width)
