"""LPIPS against a straight implementation in numpy, on weights made here and named as they are published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from prefrestore.data.pairs import to_tensor, to_uint8
from prefrestore.errors import UserError
from prefrestore.evaluation.columns import Column
from prefrestore.evaluation.perceptual import lpips_values
from prefrestore.models.lpips import Lpips, from_published, load_lpips, save_lpips

LAYERS = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool")
"""VGG-16 as its paper lists it; each convolution is followed by a ReLU, which counts as a layer."""


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """Random weights under torchvision's and the authors' names, and what else such files hold."""
    generator = torch.Generator().manual_seed(0)
    tensors, place, channels = {"classifier.0.weight": torch.zeros(1)}, 0, 3
    for width in LAYERS:
        if isinstance(width, int):
            scale = (2 / (9 * channels)) ** 0.5
            tensors[f"features.{place}.weight"] = scale * torch.randn(width, channels, 3, 3, generator=generator)
            tensors[f"features.{place}.bias"] = 0.1 * torch.randn(width, generator=generator)
            channels, place = width, place + 1
        place += 1
    for block, width in enumerate((64, 128, 256, 512, 512)):
        tensors[f"lin{block}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=generator) / width
    return tensors


@pytest.fixture(scope="module")
def network(published: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Lpips:
    path = tmp_path_factory.mktemp("weights") / "lpips.safetensors"
    save_lpips(from_published(published), path)
    return load_lpips(path)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def convolve(image: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Convolve [C, H, W] with 3 x 3 kernels, zeros around."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(image, ((0, 0), (1, 1), (1, 1))), (3, 3), axis=(1, 2))
    return np.tensordot(weight, windows, ((1, 2, 3), (0, 3, 4))) + bias[:, None, None]


def taps(image: np.ndarray, tensors: dict[str, Tensor]) -> list[np.ndarray]:
    """Return what enters each pooling, channels of length 1, of an image [3, H, W] in [0, 1]."""
    mean, std = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    hidden = (2 * image - 1 - mean[:, None, None]) / std[:, None, None]
    found, place = [], 0
    for width in LAYERS:
        if width == "pool":
            found.append(hidden / np.sqrt((hidden**2).sum(0)))
            hidden = np.maximum.reduce([hidden[:, i::2, j::2] for i in (0, 1) for j in (0, 1)])
            place += 1
        else:
            parts = (tensors[f"features.{place}.{name}"].double().numpy() for name in ("weight", "bias"))
            hidden = np.maximum(convolve(hidden, *parts), 0)
            place += 2
    return found


def straight_lpips(first: np.ndarray, second: np.ndarray, tensors: dict[str, Tensor]) -> float:
    heads = [tensors[f"lin{block}.model.1.weight"].double().numpy()[0] for block in range(5)]
    pairs = zip(heads, taps(first, tensors), taps(second, tensors), strict=True)
    return float(sum((head * (a - b) ** 2).sum(0).mean() for head, a, b in pairs))


def test_it_agrees_with_the_straight_implementation(
    network: Lpips, published: dict[str, Tensor], images: Tensor
) -> None:
    ours = network(*images)
    theirs = [straight_lpips(*pair, published) for pair in zip(*images.double().numpy(), strict=True)]
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-4)
    assert len(set(theirs)) == 2


def test_equal_images_are_at_distance_zero_and_nearer_ones_nearer(network: Lpips, images: Tensor) -> None:
    assert network(images[0], images[0]).tolist() == [0.0, 0.0]
    near = network(images[0] + 0.05 * (images[1] - images[0]), images[0])
    assert (near < network(images[1], images[0])).all()
    np.testing.assert_allclose(network(images[0], images[1]), network(images[1], images[0]), rtol=1e-6)


def test_gradients_flow_to_the_image_and_not_to_the_weights(network: Lpips, images: Tensor) -> None:
    restored = images[0].clone().requires_grad_()
    network(restored, images[1]).sum().backward()
    assert restored.grad is not None
    assert restored.grad.abs().max() > 0
    assert all(weight.grad is None for weight in network.parameters())


def test_the_authors_names_mean_the_same(published: dict[str, Tensor]) -> None:
    """``net.slice2.5`` is ``features.5``; newer files name the heads twice."""
    renamed = {}
    for name, value in published.items():
        place = int(name.split(".")[1]) if name.startswith("features.") else None
        block = None if place is None else 1 + sum(place > end for end in (3, 8, 15, 22))
        renamed[name.replace("features", f"net.slice{block}").replace("lin", "lins.")] = value
    plain, other = from_published(published), from_published(renamed)
    assert plain.keys() == other.keys() == Lpips().state_dict().keys()
    assert all(torch.equal(plain[name], other[name]) for name in plain)


def test_wrong_weights_are_named(published: dict[str, Tensor], tmp_path: Path) -> None:
    lacking = {name: value for name, value in published.items() if name != "lin3.model.1.weight"}
    with pytest.raises(UserError, match=r"heads\.3 is missing"):
        from_published(lacking)
    with pytest.raises(UserError, match=r"convolutions\.1\.bias has the shape \(1,\), not \(64,\)"):
        from_published({**published, "features.2.bias": torch.zeros(1)})
    path = tmp_path / "lpips.safetensors"
    with pytest.raises(UserError, match=f"{path}: no such file"):
        load_lpips(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="is damaged"):
        load_lpips(path)
    save_lpips({"another": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="is missing"):
        load_lpips(path)


def test_a_table_of_columns_holds_the_same_values(network: Lpips, images: Tensor) -> None:
    hq, restored = (to_uint8(one) for one in images)
    columns = [Column("lq", restored[None]), Column("policy", np.stack([hq, restored, restored[::-1]]))]
    found = lpips_values(network, columns, hq)
    expected = network(to_tensor(restored), to_tensor(hq)).numpy()
    np.testing.assert_allclose(found["lq"], expected[None], rtol=1e-5)
    np.testing.assert_allclose(found["policy"][:2], np.stack([np.zeros(2), expected]), rtol=1e-5)
    assert np.isnan(lpips_values(None, columns, hq)["policy"]).all()


def test_a_value_depends_on_neither_workers_nor_company_and_equal_pictures_run_once(network: Lpips) -> None:
    generator = np.random.default_rng(2)
    hq, first, second = generator.integers(0, 256, (3, 5, 32, 32, 3), np.uint8)
    columns = [Column("base", np.stack([first, second])), Column("policy", np.stack([first, second]))]
    looked: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        features = Lpips.features
        patch.setattr(Lpips, "features", lambda self, images: looked.append(len(images)) or features(self, images))
        one = lpips_values(network, columns, hq, workers=1)
    assert sum(looked) == len(hq) * (1 + 2)  # HQ, and the two pictures that both columns have
    before = torch.get_num_threads()
    two = lpips_values(network, columns, hq, workers=2)
    assert torch.get_num_threads() == before
    alone = lpips_values(network, [Column("policy", second[None, 1:3])], hq[1:3])
    for name in ("base", "policy"):
        np.testing.assert_array_equal(one[name], two[name])
    np.testing.assert_array_equal(alone["policy"][0], one["policy"][1, 1:3])


def test_images_too_small_are_refused(network: Lpips) -> None:
    with pytest.raises(ValueError, match="16 px or more"):
        network(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))
