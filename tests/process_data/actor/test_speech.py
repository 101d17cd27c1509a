"""The actor's speech: sound, phoneme times and mouth shapes that belong together."""

import numpy as np
import pytest

from process_data.actor.speech import actor_landmarks, load_phonemes, visemes
from shared.errors import TalkheadError
from shared.landmarks import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, eye_opening, lip_opening


@pytest.fixture(scope="module", params=["train", "test"])
def speech(request):
    sound, landmarks = actor_landmarks(request.param, seed=0)
    return load_phonemes(request.param), sound, landmarks


def test_sound_and_landmarks_have_the_same_length(speech):
    phonemes, sound, landmarks = speech
    assert len(sound) == len(landmarks) * SAMPLES_PER_FRAME
    assert landmarks.dtype == np.float32 and landmarks.shape[1:] == (68, 3)
    assert phonemes[-1][2] <= len(sound) / SAMPLE_RATE


def test_phoneme_times_fit_the_sound(speech):
    phonemes, sound, _ = speech
    power = sound**2

    def mean_power(chosen):
        times = [(int(start * SAMPLE_RATE), int(stop * SAMPLE_RATE)) for name, start, stop in phonemes if chosen(name)]
        return np.concatenate([power[start:stop] for start, stop in times]).mean()

    spoken = np.zeros(len(sound), bool)
    for _, start, stop in phonemes:
        spoken[int(start * SAMPLE_RATE) : int(stop * SAMPLE_RATE)] = True
    assert power[spoken].mean() > 100 * power[~spoken].mean()
    assert mean_power(lambda name: name[0] in "aAoOEeV03") > 4 * mean_power(lambda name: name in "pbtkdg")


def test_lips_close_for_p_b_m_and_in_silence(speech):
    phonemes, _, landmarks = speech
    opening = 1000 * lip_opening(landmarks)
    for name, start, stop in phonemes:
        if name in "pbm":
            frames = slice(max(0, int(start * FPS) - 1), int(stop * FPS) + 2)
            assert opening[frames].min() < 0.3, (name, start)
    assert np.abs(opening[: int(phonemes[0][1] * FPS) - 1]).max() < 0.1
    assert np.abs(opening[int(phonemes[-1][2] * FPS) + 4 :]).max() < 0.1
    assert opening.min() > -0.1


def test_amplitude_is_that_of_speech(speech):
    landmarks = speech[2]
    opening = 1000 * lip_opening(landmarks)
    assert 8 < opening.max() < 16 and 2 < opening.mean() < 6
    width = 1000 * (landmarks[:, 54, 0] - landmarks[:, 48, 0])
    assert width.max() - width.min() > 6


def test_the_actor_blinks_and_the_seed_decides_when():
    first, second = (actor_landmarks("train", seed)[1] for seed in (0, 1))
    assert (eye_opening(first).min(axis=0) < 0.001).all()
    assert not np.allclose(eye_opening(first), eye_opening(second))
    np.testing.assert_array_equal(first, actor_landmarks("train", 0)[1])


def test_unknown_phonemes_and_utterances_are_refused():
    with pytest.raises(TalkheadError, match="'q'"):
        visemes("q")
    with pytest.raises(TalkheadError, match="'lecture'"):
        actor_landmarks("lecture")  # type: ignore[arg-type]
