"""LPIPS against a slow reference on random weights, its properties, and what is said about wrong files."""

import numpy as np
import pytest
import torch

from shared.errors import TalkheadError
from stage2_gaussian.evaluation.lpips import BACKBONE, LAYERS, LINEAR, load_lpips


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder of random weights under the published names and shapes, beside tensors that are not needed."""
    folder = tmp_path_factory.mktemp("lpips")
    generator = torch.Generator().manual_seed(0)
    backbone = {"classifier.6.bias": torch.zeros(1000)}
    for number, into, out, kernel, _, _ in LAYERS:
        spread = (2 / (into * kernel**2)) ** 0.5
        backbone[f"features.{number}.weight"] = spread * torch.randn(out, into, kernel, kernel, generator=generator)
        backbone[f"features.{number}.bias"] = 0.1 * torch.randn(out, generator=generator)
    torch.save(backbone, folder / BACKBONE)
    torch.save({f"lin{k}.model.1.weight": torch.rand(1, layer[2], 1, 1, generator=generator)
                for k, layer in enumerate(LAYERS)}, folder / LINEAR)
    return folder


def convolve(x, weight, bias, stride, padding):
    """(C, h, w) by a loop over the places of the output."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    size = weight.shape[-1]
    rows, columns = (x.shape[1] - size) // stride + 1, (x.shape[2] - size) // stride + 1
    out = np.empty((len(weight), rows, columns))
    for i in range(rows):
        for j in range(columns):
            patch = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
            out[:, i, j] = (weight * patch).sum((1, 2, 3)) + bias
    return out


def pool(x):
    rows, columns = (x.shape[1] - 3) // 2 + 1, (x.shape[2] - 3) // 2 + 1
    return np.array([[x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2)) for j in range(columns)]
                     for i in range(rows)]).transpose(2, 0, 1)


def reference(a, b, folder):
    """The published definition in NumPy, on pictures (H, W, 3) in [0, 1]."""
    backbone, linear = (torch.load(folder / name, weights_only=True) for name in (BACKBONE, LINEAR))
    x, y = (((2 * p - 1 - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450]).transpose(2, 0, 1) for p in (a, b))
    total = 0.0
    for k, (number, _, _, _, stride, padding) in enumerate(LAYERS):
        weight, bias = (backbone[f"features.{number}.{part}"].numpy().astype(float) for part in ("weight", "bias"))
        if number in (3, 6):
            x, y = pool(x), pool(y)
        x, y = (np.maximum(convolve(z, weight, bias, stride, padding), 0) for z in (x, y))
        apart = x / np.linalg.norm(x, axis=0) - y / np.linalg.norm(y, axis=0)
        total += (linear[f"lin{k}.model.1.weight"].numpy()[0] * apart**2).sum(0).mean()
    return total


def test_it_equals_the_definition(weights):
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 67, 75, 3))
    model = load_lpips(weights, "cpu")
    distance, places = model(*(torch.from_numpy(p).float()[None] for p in (a, b)))
    assert float(distance) == pytest.approx(reference(a, b, weights), rel=1e-4)
    assert places.shape == (1, 67, 75) and float(places.mean()) == pytest.approx(float(distance), rel=0.1)


def test_it_is_a_distance_and_sees_where(weights):
    model = load_lpips(weights, "cpu")
    a = torch.rand(2, 128, 128, 3, generator=torch.Generator().manual_seed(2))
    b = a.clone()
    b[0, 10:40, 10:40] = 1 - b[0, 10:40, 10:40]
    there, back, same = model(a, b), model(b, a), model(a, a)
    assert torch.equal(there[0], back[0]) and float(there[0][0]) > 0.01
    assert float(there[0][1]) == 0 and not same[0].any() and not same[1].any()
    assert float(there[1][0, :64, :64].mean()) > 10 * float(there[1][0, 64:, 64:].mean())


def test_it_can_be_a_loss(weights):
    model = load_lpips(weights, "cpu")
    a = torch.rand(1, 64, 64, 3).requires_grad_()
    model(a, torch.zeros(1, 64, 64, 3))[0].sum().backward()
    assert a.grad is not None and float(a.grad.abs().sum()) > 0
    assert not any(p.requires_grad for p in model.parameters())


def test_missing_and_wrong_files_are_named(weights, tmp_path):
    with pytest.raises(TalkheadError, match=f"{BACKBONE} does not exist; LPIPS needs torchvision's"):
        load_lpips(tmp_path, "cpu")
    (tmp_path / BACKBONE).write_bytes(b"no weights")
    with pytest.raises(TalkheadError, match=f"{BACKBONE} is not a file of PyTorch weights"):
        load_lpips(tmp_path, "cpu")
    torch.save([1.0], tmp_path / BACKBONE)
    with pytest.raises(TalkheadError, match="expected a dictionary of tensors, found list"):
        load_lpips(tmp_path, "cpu")
    (tmp_path / BACKBONE).write_bytes((weights / BACKBONE).read_bytes())
    torch.save({"lin0.model.1.weight": torch.zeros(1, 63, 1, 1)}, tmp_path / LINEAR)
    with pytest.raises(TalkheadError, match=r"lin0.model.1.weight of shape \(1, 64, 1, 1\), found shape \(1, 63, 1, 1\)"):
        load_lpips(tmp_path, "cpu")
    torch.save({}, tmp_path / LINEAR)
    with pytest.raises(TalkheadError, match=r"lin0.model.1.weight of shape \(1, 64, 1, 1\), found none"):
        load_lpips(tmp_path, "cpu")
