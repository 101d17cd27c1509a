"""The front end as docs/formats.md describes it, written from that text in plain NumPy, against `FeatureStream`."""

import numpy as np
import pytest

from stage1_audio2lmk.audio.dc_blocker import DCBlocker
from stage1_audio2lmk.audio.features import FeatureStream


def block_dc(sound: np.ndarray) -> np.ndarray:
    p = 1 - 2 * np.pi * 10 / 16000
    g = (1 + p) / 2
    out, before, last = np.zeros(len(sound)), sound[0], 0.0
    for i, value in enumerate(sound):
        last = g * (value - before) + p * last
        before, out[i] = value, last
    return out


def mel(f: float) -> float:
    return 2595 * np.log10(1 + f / 700)


def log_mel_rows(y: np.ndarray) -> np.ndarray:
    """y (640·T,) -> (T, 320)."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    e = 700 * (10 ** (np.linspace(mel(60), mel(7600), 82) / 2595) - 1)
    f = 31.25 * np.arange(257)
    filters = np.stack([np.maximum(0, np.minimum((f - e[b]) / (e[b + 1] - e[b]), (e[b + 2] - f) / (e[b + 2] - e[b + 1])))
                        for b in range(80)])
    rows = []
    for t in range(len(y) // 640):
        row = []
        for j in range(4):
            end = 640 * t + 160 * (j + 1)
            window = np.concatenate([np.zeros(max(0, 400 - end)), y[max(0, end - 400) : end]])
            power = np.abs(np.fft.fft(np.concatenate([window * hann, np.zeros(112)]))[:257]) ** 2
            row.append(np.log(filters @ power + 0.00001))
        rows.append(np.concatenate(row))
    return np.array(rows)


@pytest.mark.parametrize("offset", [0.0, 0.2])
def test_the_documented_front_end_is_the_one_that_runs(speech: np.ndarray, offset: float) -> None:
    sound = speech[: 640 * 60] + np.float32(offset)
    gate, stream = DCBlocker(), FeatureStream(voice=False)
    found = np.concatenate([stream.push(gate.pass_through(part)) for part in np.split(sound, [640, 640 * 4])])[:, :320]
    np.testing.assert_allclose(found, log_mel_rows(block_dc(sound.astype(np.float64))), rtol=0, atol=2e-3)


def test_silence_is_the_documented_number() -> None:
    np.testing.assert_allclose(FeatureStream(voice=False).push(np.zeros(640, np.float32))[:, :320], -11.512925, atol=1e-6)
