"""The kernel and the regressor against their formulas, spelt out slowly in double precision."""

import numpy as np
import pytest
import torch

from shared.errors import TalkheadError
from stage1_audio2lmk.audio.features import FEATURE_SIZE, HOPS, MELS
from stage1_audio2lmk.config import KernelConfig
from stage1_audio2lmk.kernel import KernelRegressor, Sound, SoundKernel
from tests.stage1_audio2lmk.slow_kernel import likeness, windows


def mel_windows(count: int, taps: int, seed: int) -> np.ndarray:
    """(count, taps, 80) log-mel that is alike from frame to frame and louder here than there."""
    rng = np.random.default_rng(seed)
    mel = np.cumsum(rng.normal(size=(count + taps, MELS)), 0) * 0.4 + 2 * rng.normal(size=(count + taps, 1)) - 4
    return np.stack([mel[t : t + taps] for t in range(count)]).astype(np.float32)


def sound(mel: np.ndarray, embedding: np.ndarray | None = None) -> Sound:
    embedding = np.zeros((len(mel), 0)) if embedding is None else embedding
    return Sound(torch.from_numpy(mel).float(), torch.from_numpy(embedding).float())


def set_scales(kernel: SoundKernel, rows: np.ndarray) -> None:
    """Scales of rows (n, 80) of log-mel."""
    x = torch.from_numpy(rows)
    parts = torch.cat([x, x - x.mean(-1, keepdim=True), x.mean(-1, keepdim=True)], -1)
    kernel.mean.copy_(parts.mean(0))
    kernel.scale.copy_(parts.std(0).clamp_min(0.05))


def made(past: int, look_ahead: int, **more: float) -> tuple[SoundKernel, np.ndarray, np.ndarray]:
    """A kernel, 30 support points in half precision and the rows that its scales are of."""
    kernel = SoundKernel(KernelConfig(past=past, look_ahead=look_ahead, **more))
    points, rows = mel_windows(30, past + 1 + look_ahead, 0).astype(np.float16), mel_windows(200, 1, 1)[:, 0]
    set_scales(kernel, rows)
    return kernel, points, rows


@pytest.mark.parametrize("past, look_ahead", [(4, 2), (7, 2), (4, 0), (2, 3), (0, 0)])
def test_it_is_the_formula(past: int, look_ahead: int) -> None:
    """Also where the window is longer than what the scales look at, or shorter."""
    kernel, points, rows = made(past, look_ahead)
    new = mel_windows(20, past + 1 + look_ahead, 2)
    expected = likeness(new, points, rows, past)
    assert expected.std() > 0.05
    found = kernel(sound(new), kernel.table(sound(points)))
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("mel_terms", [True, False])
def test_an_embedding_is_one_more_gaussian_or_the_only_one(mel_terms: bool) -> None:
    """exp(−sharpness·|a − b|²), times its share."""
    size, share, sharpness = 24, 0.7, 1.5
    kernel, points, rows = made(4, 2, size=size, share=share, sharpness=sharpness, mel_terms=mel_terms)
    rng = np.random.default_rng(3)
    new, ours, theirs = mel_windows(20, 7, 2), *(rng.normal(size=(count, size)) / size**0.5 for count in (20, 30))
    expected = share * np.exp(-sharpness * ((ours[:, None] - theirs[None]) ** 2).sum(-1))
    if mel_terms:
        expected += likeness(new, points, rows, 4)
    else:
        new, points = new[:, :0], points[:, :0]
    found = kernel(sound(new, ours), kernel.table(sound(points, theirs)))
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=2e-5)


def test_log_mel_or_an_embedding_must_be_compared() -> None:
    for more in ({}, {"size": 8, "share": 0.0}):
        with pytest.raises(TalkheadError, match="without a speech encoder mel_terms should be true"):
            KernelConfig(mel_terms=False, **more)


@pytest.mark.parametrize("mel_terms", [True, False])
def test_windows_are_rows_and_their_neighbours(mel_terms: bool) -> None:
    kernel = SoundKernel(KernelConfig(past=4, look_ahead=2, size=3, mel_terms=mel_terms))
    rows = np.random.default_rng(0).normal(size=(20, FEATURE_SIZE + 3)).astype(np.float32)
    quiet = rows[0]
    padded = np.concatenate([np.repeat(quiet[None], kernel.left, 0), rows, np.repeat(quiet[None], kernel.ahead, 0)])
    found = kernel.sound(torch.from_numpy(padded)[None])
    np.testing.assert_array_equal(found.embedding[0], rows[:, FEATURE_SIZE:])
    assert found.windows.shape == ((1, 20, 7, MELS) if mel_terms else (1, 20, 0, MELS))
    if mel_terms:
        np.testing.assert_allclose(found.windows[0], windows(rows, quiet, 4, 2), atol=1e-5)
    assert HOPS * MELS < FEATURE_SIZE


def test_batches_change_nothing() -> None:
    kernel, points, _ = made(4, 2)
    new, table = torch.from_numpy(mel_windows(20, 7, 2)), kernel.table(sound(points))
    nothing = torch.zeros(20, 0)
    one = torch.cat([kernel(Sound(row[None], nothing[:1]), table) for row in new])
    many = kernel(Sound(new.unflatten(0, (4, 5)), nothing.unflatten(0, (4, 5))), table)
    torch.testing.assert_close(many.flatten(0, 1), one, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [0, 16])
def test_weighted_sums_take_a_short_cut(size: int) -> None:
    kernel, points, _ = made(4, 2, size=size)
    rng = np.random.default_rng(3)
    ours, theirs = (rng.normal(size=(count, size)) for count in (20, 30))
    table, weights = kernel.table(sound(points, theirs)), torch.from_numpy(rng.normal(size=(5, 30))).float()
    new = sound(mel_windows(20, 7, 2), ours)
    found = kernel.weighted(new, weights, table, table.mel @ weights.T)
    torch.testing.assert_close(found, kernel(new, table) @ weights.T, atol=2e-5, rtol=1e-5)


def test_it_is_a_kernel() -> None:
    """Symmetric without negative eigenvalues beyond rounding; the same sound is 1.2 like itself beside the linear part."""
    kernel, points, rows = made(4, 2)
    gram = kernel(sound(points), kernel.table(sound(points))).double().numpy()
    np.testing.assert_allclose(gram, gram.T, atol=2e-5)
    assert np.linalg.eigvalsh((gram + gram.T) / 2)[0] > -1e-5
    scaled = (points.astype(float) - rows.mean(0)) / rows.std(0, ddof=1)
    np.testing.assert_allclose(np.diag(gram), 1.2 + 0.3 * (scaled**2).mean((1, 2)), atol=1e-4)


def test_a_band_that_never_changes_is_not_blown_up() -> None:
    kernel = SoundKernel(KernelConfig(past=0, look_ahead=0))
    flat = np.full((50, 1, MELS), -11.5, np.float32)
    set_scales(kernel, flat[:, 0])
    table = kernel.table(sound(flat[:1]))
    assert kernel(sound(flat[:1]), table).item() == pytest.approx(1.2, abs=0.01)
    assert torch.isfinite(kernel(sound(np.full((1, 1, MELS), 3.0)), table)).all()


@pytest.mark.parametrize("config", [KernelConfig(5), KernelConfig(5, size=6), KernelConfig(5, size=6, mel_terms=False)])
def test_the_regressor_is_a_weighted_sum_about_rest(config: KernelConfig) -> None:
    rng = torch.Generator().manual_seed(0)
    regressor = KernelRegressor(config, points=30)
    for name, value in regressor.named_buffers():
        if "scale" not in name and "_weights" not in name:
            value.copy_(torch.randn(value.shape, generator=rng))
    padded = torch.randn(1, regressor.left + 9 + regressor.ahead, FEATURE_SIZE + config.size, generator=rng)
    table = regressor.similarity.table(Sound(regressor.support_mel, regressor.support_embedding))
    near = regressor.similarity(regressor.similarity.sound(padded), table)
    expected = regressor.rest + (near @ regressor.weights.T + regressor.bias) @ regressor.basis
    moved, familiarity = regressor(padded)
    torch.testing.assert_close(moved, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(familiarity, near @ regressor.familiar[:, None], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(regressor(padded, regressor.prepare()), (moved, familiarity))
    assert regressor.support_mel.dtype == torch.float16 and not list(regressor.parameters())


@pytest.mark.parametrize("mel_terms", [True, False])
def test_without_support_points_it_is_at_rest(mel_terms: bool) -> None:
    regressor = KernelRegressor(KernelConfig(3, size=4, mel_terms=mel_terms))
    regressor.rest += 0.5
    found, familiarity = regressor(torch.randn(2, regressor.left + 5 + regressor.ahead, FEATURE_SIZE + 4))
    assert found.shape == (2, 5, 111) and (found == 0.5).all() and familiarity.shape == (2, 5, 1) and not familiarity.any()
