"""What any samples become before they are heard."""

import numpy as np
import pytest

from shared.errors import TalkheadError
from stage1_audio2lmk.audio.dc_blocker import DCBlocker


def test_the_gate_leaves_a_voice_alone() -> None:
    time = np.arange(16000) / 16000
    for hertz, least in ((2.0, 0.0), (80.0, 0.99), (1000.0, 0.998)):
        gain = DCBlocker().pass_through(0.5 * np.sin(2 * np.pi * hertz * time))[8000:].std() / (0.5 / 2**0.5)
        assert least <= gain <= (0.25 if hertz < 10 else 1.001)


def test_half_the_power_at_ten_hertz() -> None:
    time = np.arange(5 * 16000) / 16000
    gain = DCBlocker().pass_through(0.5 * np.sin(2 * np.pi * 10 * time))[16000:].std() / (0.5 / 2**0.5)
    assert gain == pytest.approx(0.5**0.5, abs=0.01)


@pytest.mark.parametrize("sizes", [[1], [640], [0, 7, 333]])
def test_pieces_equal_the_whole(sizes: list[int]) -> None:
    sound = (0.3 + 0.2 * np.random.default_rng(0).normal(size=2000)).astype(np.float32)
    gate, parts, at = DCBlocker(), [], 0
    while at < len(sound):
        size = sizes[len(parts) % len(sizes)]
        parts.append(gate.pass_through(sound[at : at + size]))
        at += size
    whole = DCBlocker().pass_through(sound)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-7)


def test_what_is_no_sound_is_made_one() -> None:
    sound = np.array([0.5, np.nan, np.inf, -np.inf, 7.0, -7.0])
    np.testing.assert_array_equal(DCBlocker().pass_through(sound), DCBlocker().pass_through(np.array([0.5, 0, 1, -1, 1, -1])))


def test_an_offset_makes_no_click() -> None:
    np.testing.assert_allclose(DCBlocker().pass_through(np.full(1000, 0.7)), 0, atol=1e-7)


@pytest.mark.parametrize("samples", [np.zeros((10, 2), np.float32), np.zeros(10, np.int16)])
def test_other_samples_are_refused(samples: np.ndarray) -> None:
    with pytest.raises(TalkheadError, match=f"mono samples .* found {samples.dtype}"):
        DCBlocker().pass_through(samples)
