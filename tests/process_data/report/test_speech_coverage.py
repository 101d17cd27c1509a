import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from process_data.actor.actor import actor_landmarks
from process_data.actor.speech import load_phonemes
from process_data.report.speech_coverage import CLASSES, classify, speech_coverage
from shared.landmarks import FPS, SAMPLES_PER_FRAME

SILENCE, CLOSED, HALF, WIDE, SPREAD, ROUNDED, HISSING, SHUT = CLASSES


@pytest.fixture(scope="module")
def actor():
    sound, landmarks = actor_landmarks("train", 0)
    return sound[: len(landmarks) * SAMPLES_PER_FRAME], landmarks


@pytest.fixture(scope="module")
def spoken(actor):
    """(T,) phoneme of every frame of the actor, "" in silence."""
    time = (np.arange(len(actor[1])) + 0.5) / FPS
    names = np.full(len(time), "", object)
    for name, start, stop in load_phonemes("train"):
        names[(time >= start) & (time < stop)] = name
    return names


@pytest.mark.parametrize("name, phonemes, recall, precision", [
    (CLOSED, "p b m", 0.9, 0.8),
    (ROUNDED, "u: U w oU O: O@ o@ S tS dZ", 0.7, 0.8),
    (SPREAD, "i i: I I# I2 eI j ; s z", 0.5, 0.8),
    (WIDE, "0 a a# aI aU A: V E O: o@", 0.55, 0.8),
    (HISSING, "s S tS z Z f T t k", 0.3, 0.9),
    (SILENCE, "", 0.75, 0.95),
])
def test_frames_are_sorted_as_they_were_spoken(actor, spoken, name, phonemes, recall, precision):
    found = classify(*actor)[name]
    true = np.isin(spoken, phonemes.split() or [""])
    assert (found & true).sum() / true.sum() >= recall
    # the lips move before and after the sound: a frame beside one counts as right
    assert (found & binary_dilation(true, np.ones(3))).sum() / found.sum() >= precision


def test_seconds_and_what_to_read(actor):
    found = speech_coverage(*actor)
    assert [c.name for c in found] == list(CLASSES)
    flags = classify(*actor)
    for c in found:
        assert c.seconds == pytest.approx(flags[c.name].sum() / FPS)
        assert c.enough == (c.seconds >= CLASSES[c.name][0]) and c.advice


def test_twice_the_clip_is_twice_the_seconds(actor):
    sound, landmarks = actor
    once, twice = speech_coverage(sound, landmarks), speech_coverage(np.tile(sound, 2), np.tile(landmarks, (2, 1, 1)))
    for a, b in zip(once, twice):
        assert b.seconds == pytest.approx(2 * a.seconds, abs=0.5)


def test_blocks_make_no_difference(actor, monkeypatch):
    whole = classify(*actor)
    monkeypatch.setattr("process_data.report.speech_coverage.BLOCK", 97)
    for name, frames in classify(*actor).items():
        assert (frames == whole[name]).all()


def test_silence_holds_no_speech(actor):
    sound, landmarks = actor
    seconds = {c.name: c.seconds for c in speech_coverage(np.zeros_like(sound), landmarks)}
    assert seconds[SILENCE] == pytest.approx(len(landmarks) / FPS, abs=0.5)
    assert all(seconds[name] == 0 for name in (CLOSED, HALF, WIDE, SPREAD, ROUNDED, HISSING))
    assert seconds[SHUT] > 0.5  # the actor blinks


def test_a_clip_of_one_frame_and_a_still_face(actor):
    sound, landmarks = actor
    assert all(c.seconds <= 1 / FPS for c in speech_coverage(sound[:SAMPLES_PER_FRAME], landmarks[:1]))
    still = {c.name: c for c in speech_coverage(sound, np.repeat(landmarks[:1], len(landmarks), axis=0))}
    assert not still[WIDE].enough and not still[ROUNDED].enough and "Who would choose" in still[ROUNDED].advice
