import cv2
import numpy as np
import pytest

from shared.watermark.detect import Evidence, _view, cuts, detect, search
from shared.watermark.mark import Watermark
from shared.watermark.payload import Payload
from tests.shared.watermark.scene import scene

PAYLOAD = Payload(0xC0FFEE1)


@pytest.fixture(scope="module")
def marked() -> np.ndarray:
    frames = scene(60)
    return Watermark(PAYLOAD, frames.shape[2], frames.shape[1]).mark(frames, 1237)


def test_reads_the_message_without_knowing_when_it_began(marked):
    found = detect(marked)
    assert found is not None and found.payload == PAYLOAD and found.chance < 1e-20
    assert not found.mirrored and np.allclose(found.crop, (0, 1, 0, 1), atol=0.02) and (found.start, found.stop) == (0, 2.4)


@pytest.mark.parametrize("treated", ["scaled", "cropped", "mirrored", "negative and dim"])
def test_reads_it_after(marked, treated):
    frames = {"scaled": lambda: [cv2.resize(frame, (110, 120), interpolation=cv2.INTER_AREA) for frame in marked],
              "cropped": lambda: marked[:, 13:-3, 4:-15],
              "mirrored": lambda: marked[:, :, ::-1],
              "negative and dim": lambda: (200 - 0.6 * marked).astype(np.uint8)}[treated]()
    found = detect(np.ascontiguousarray(frame) for frame in frames)
    assert found is not None and found.payload == PAYLOAD and found.mirrored == (treated == "mirrored")
    if treated == "cropped":
        assert np.allclose(found.crop, (4 / 192, 1 - 15 / 192, 13 / 160, 1 - 3 / 160), atol=0.02)


def test_none_in_unmarked_short_still_and_empty_videos(marked):
    assert detect(scene(60, seed=5)) is None
    assert detect(marked[:49]) is None
    assert detect(np.repeat(marked[:1], 60, 0)) is None
    assert detect(np.zeros((60, 32, 32, 3), np.uint8)) is None
    assert detect(iter(())) is None


def test_the_best_fit_to_an_unmarked_video_is_what_chance_gives():
    """The largest of n exponential numbers is about ln n; neighbouring crops are alike, so it is less here."""
    best = []
    for seed in range(3):
        evidence = Evidence.of(np.stack([_view(frame) for frame in scene(50, 96, 96, seed=seed)]), 0, 25)
        best.append(max(search(evidence.wave, evidence.power))[0])
    assert max(best) < np.log(len(cuts()) ** 2) + 4


@pytest.mark.slow
def test_windows_that_are_too_weak_alone_are_read_together(marked, monkeypatch):
    from shared.watermark import detect as module

    rng = np.random.default_rng(2)
    frames = scene(300, 96, 96)
    faint = Watermark(PAYLOAD, 96, 96).mark(frames, 0)
    drowned = np.clip(faint + rng.normal(scale=60, size=faint.shape), 0, 255).astype(np.uint8)
    monkeypatch.setattr(module, "WINDOW", 3.0)
    alone = [detect(drowned[start : start + 75]) for start in (0, 75, 150, 225)]
    together = detect(drowned)
    assert alone == [None] * 4
    assert together is not None and together.payload == PAYLOAD and together.stop == 12.0
