"""The kernel against its formula, spelt out slowly in double precision."""

import numpy as np
import pytest
import torch

from stage1_audio2lmk.audio.features import MELS
from stage1_audio2lmk.kernel import SoundKernel
from tests.stage1_audio2lmk.slow_kernel import likeness


def sound(count: int, taps: int, seed: int) -> np.ndarray:
    """(count, taps, 80) log-mel that is alike from frame to frame and louder here than there."""
    rng = np.random.default_rng(seed)
    mel = np.cumsum(rng.normal(size=(count + taps, MELS)), 0) * 0.4 + 2 * rng.normal(size=(count + taps, 1)) - 4
    return np.stack([mel[t : t + taps] for t in range(count)]).astype(np.float32)


def made(past: int, ahead: int, size: int = 0, share: float = 0.0) -> tuple[SoundKernel, np.ndarray, np.ndarray]:
    """A kernel with 30 centres, those centres and the rows that its statistics are of."""
    kernel, centres, rows = SoundKernel(30, past, ahead, size, share), sound(30, past + 1 + ahead, 0), sound(200, 1, 1)[:, 0]
    kernel.set_statistics(torch.from_numpy(rows))
    return kernel, centres, rows


@pytest.mark.parametrize("past, ahead", [(4, 2), (7, 2), (4, 0), (2, 3), (0, 0)])
def test_it_is_the_formula(past: int, ahead: int) -> None:
    """Also where the window is longer than what the scales look at, or shorter."""
    kernel, centres, rows = made(past, ahead)
    kernel.set_centres(torch.from_numpy(centres))
    new = sound(20, past + 1 + ahead, 2)
    expected = likeness(new, centres.astype(np.float16), rows, past)
    assert expected.std() > 0.05
    np.testing.assert_allclose(kernel(torch.from_numpy(new)).numpy(), expected, rtol=0, atol=2e-5)


def test_an_embedding_is_one_more_gaussian() -> None:
    """Its sharpness is one of the mean squared difference; its share is what the caller says."""
    size, share = 24, 0.7
    kernel, centres, rows = made(4, 2, size, share)
    rng = np.random.default_rng(3)
    new, ours, theirs = sound(20, 7, 2), rng.normal(size=(20, size)), rng.normal(size=(30, size)).astype(np.float16)
    kernel.set_centres(torch.from_numpy(centres), torch.from_numpy(theirs))
    found = kernel(torch.from_numpy(new), torch.from_numpy(ours).float()).numpy()
    extra = share * np.exp(-((ours[:, None] - theirs[None].astype(float)) ** 2).mean(-1))
    np.testing.assert_allclose(found, likeness(new, centres.astype(np.float16), rows, 4) + extra, rtol=0, atol=2e-5)


def test_an_encoder_without_embedding_has_no_share() -> None:
    kernel, centres, rows = made(4, 2, 0, 0.7)
    kernel.set_centres(torch.from_numpy(centres))
    expected = likeness(centres, centres.astype(np.float16), rows, 4)
    np.testing.assert_allclose(kernel(torch.from_numpy(centres)).numpy(), expected, atol=2e-5)


def test_centres_in_half_precision_cost_next_to_nothing() -> None:
    kernel, centres, rows = made(4, 2)
    kernel.set_centres(torch.from_numpy(centres))
    assert kernel.state_dict()["centres"].dtype == torch.float16
    new = sound(20, 7, 2)
    expected = likeness(new, centres, rows, 4)
    found = kernel(torch.from_numpy(new)).numpy()
    assert 0 < np.abs(found - expected).max() < 2e-3 < 0.05 * expected.std()


def test_batches_and_a_table_made_before_change_nothing() -> None:
    kernel, centres, _ = made(4, 2)
    kernel.set_centres(torch.from_numpy(centres))
    new, table = torch.from_numpy(sound(20, 7, 2)), kernel.table()
    one = torch.cat([kernel(row[None], table=table) for row in new])
    torch.testing.assert_close(kernel(new.unflatten(0, (4, 5)), table=table).flatten(0, 1), one, atol=1e-5, rtol=0)
    torch.testing.assert_close(kernel(new), one, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [0, 16])
def test_weighted_sums_take_a_short_cut(size: int) -> None:
    kernel, centres, _ = made(4, 2, size, 1.0)
    rng = np.random.default_rng(3)
    ours, theirs = (torch.from_numpy(rng.normal(size=(count, size))).float() for count in (20, 30))
    kernel.set_centres(torch.from_numpy(centres), theirs if size else None)
    new, weights, table = torch.from_numpy(sound(20, 7, 2)), torch.from_numpy(rng.normal(size=(5, 30))).float(), kernel.table()
    found = kernel.weighted(new, ours if size else None, weights, table, table.mel @ weights.T)
    torch.testing.assert_close(found, kernel(new, ours if size else None) @ weights.T, atol=2e-5, rtol=1e-5)


def test_it_is_a_kernel() -> None:
    """Symmetric without negative eigenvalues beyond rounding; the same sound is 1.2 like itself beside the linear part."""
    kernel, centres, rows = made(4, 2)
    kernel.set_centres(torch.from_numpy(centres))
    table = kernel(kernel.centres.float()).double().numpy()
    np.testing.assert_allclose(table, table.T, atol=2e-5)
    assert np.linalg.eigvalsh((table + table.T) / 2)[0] > -1e-5
    scaled = (kernel.centres.double().numpy() - rows.mean(0)) / rows.std(0, ddof=1)
    np.testing.assert_allclose(np.diag(table), 1.2 + 0.3 * (scaled**2).mean((1, 2)), atol=1e-4)


def test_a_band_that_never_changes_is_not_blown_up() -> None:
    kernel = SoundKernel(1, 0, 0)
    kernel.set_statistics(torch.full((50, MELS), -11.5))
    kernel.set_centres(torch.full((1, 1, MELS), -11.5))
    assert kernel(torch.full((1, 1, MELS), -11.5)).item() == pytest.approx(1.2, abs=0.01)
    assert torch.isfinite(kernel(torch.full((1, 1, MELS), 3.0))).all()
