"""Makes the synthetic actor's speech with the system's espeak-ng: sound and phoneme times of one synthesis run.

The results are shipped in process_data/data; using them needs no espeak-ng. To make them again, install libespeak-ng
(`apt-get install libespeak-ng1`) and run

    python -m tools.make_actor_speech
"""

import ctypes.util
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from scipy.signal import resample_poly

from shared.errors import TalkheadError
from shared.files import atomic_path, write_json
from shared.landmarks import SAMPLE_RATE
from shared.media.container import media_url
from tools.espeak import PITCH, RATE, RETRIEVAL, Espeak

DATA = Path(__file__).resolve().parents[1] / "process_data" / "data"
VOICE = "en-us"


@dataclass(frozen=True)
class Sentence:
    """One sentence with its speaking rate (words a minute), pitch (espeak's 0–100) and the pause after it (seconds)."""

    text: str
    rate: int
    pitch: int
    pause: float


UTTERANCES = {
    "train": [
        Sentence("My brother bought four big blue boats and a pair of heavy oars.", 170, 46, 0.5),
        Sentence("Please put the paper plates above the open window, Emma.", 160, 52, 0.4),
        Sentence("We thought the weather would be fair, but every hour brought more fog.", 175, 43, 0.6),
        Sentence("Who knew that five young foxes loved to chew yellow shoes?", 165, 54, 0.5),
        Sentence("The judge was pleased to measure each rough beam with a warm thumb.", 178, 47, 0.4),
        Sentence("Go home now, you may show me a few more pictures tomorrow.", 163, 50, 0.5),
    ],
    "test": [
        Sentence("Five brave women moved the old piano over the bridge.", 170, 48, 0.5),
        Sentence("Both of us hope you will stay for apple pie and warm coffee.", 166, 51, 0.5),
    ],
}
LEAD_IN = 0.6  # seconds of silence before the first sentence


def load_espeak(voice: str = VOICE) -> Espeak:
    """The system's libespeak-ng with a voice. Raises TalkheadError if either is missing."""
    library = ctypes.util.find_library("espeak-ng")
    if library is None:
        raise TalkheadError("libespeak-ng was not found; install it (apt-get install libespeak-ng1)")
    espeak = Espeak(library, output=RETRIEVAL, buffer_ms=400)
    if espeak.rate <= 0 or not espeak.set_voice(voice):
        raise TalkheadError(f"libespeak-ng cannot start with the voice {voice!r}; check that espeak-ng-data is there")
    return espeak


def speak(espeak: Espeak, sentence: Sentence) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
    """Sentence -> sound (n,) float32 at 16 kHz, and (espeak phoneme mnemonic, start, stop) in seconds."""
    samples, marks = espeak.say(sentence.text, {RATE: sentence.rate, PITCH: sentence.pitch})
    sound = samples.astype(np.float32) / 32768
    ratio = Fraction(SAMPLE_RATE, espeak.rate)
    starts = [mark.milliseconds / 1000 for mark in marks]
    stops = [*starts[1:], len(sound) / espeak.rate]
    names = [mark.name.decode("utf-8", "replace") for mark in marks]
    phonemes = [(name, start, stop) for name, start, stop in zip(names, starts, stops) if stop > start and name.strip("_:")]
    return resample_poly(sound, ratio.numerator, ratio.denominator).astype(np.float32), phonemes


def make_utterance(espeak: Espeak, sentences: list[Sentence]) -> tuple[np.ndarray, list[dict]]:
    """Sentences -> sound (n,) float32 at 16 kHz, peak 0.7, and its phonemes {"phoneme", "start", "stop"} in seconds."""
    sounds = [np.zeros(round(LEAD_IN * SAMPLE_RATE), np.float32)]
    times = []
    for sentence in sentences:
        offset = sum(map(len, sounds)) / SAMPLE_RATE
        sound, phonemes = speak(espeak, sentence)
        last = int(np.flatnonzero(np.abs(sound) > 1e-3)[-1]) + 1
        sounds += [sound[:last], np.zeros(round(sentence.pause * SAMPLE_RATE), np.float32)]
        for name, start, stop in phonemes:
            stop = min(stop, last / SAMPLE_RATE)
            if stop > start:
                times.append({"phoneme": name, "start": round(offset + start, 4), "stop": round(offset + stop, 4)})
    sound = np.concatenate(sounds)
    return 0.7 * sound / np.abs(sound).max(), times


def save_flac(path: Path, sound: np.ndarray) -> None:
    """Write (n,) float32 in [−1, 1] as 16-bit 16 kHz mono FLAC, atomically."""
    with atomic_path(path) as partial, av.open(media_url(partial), "w") as container:
        stream = container.add_stream("flac", rate=SAMPLE_RATE, layout="mono")
        pcm = np.round(sound * 32767).astype(np.int16)
        for start in range(0, len(pcm), 4096):
            frame = av.AudioFrame.from_ndarray(pcm[None, start : start + 4096], format="s16", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def main() -> None:
    """Write actor_speech.flac/.json and actor_test.flac/.json into process_data/data."""
    espeak = load_espeak()
    for utterance, stem in (("train", "actor_speech"), ("test", "actor_test")):
        sound, phonemes = make_utterance(espeak, UTTERANCES[utterance])
        save_flac(DATA / f"{stem}.flac", sound)
        write_json(DATA / f"{stem}.json", {
            "voice": f"espeak-ng {VOICE}",
            "text": " ".join(sentence.text for sentence in UTTERANCES[utterance]),
            "phonemes": phonemes,
        })
        print(f"{stem}: {len(sound) / SAMPLE_RATE:.2f} s, {len(phonemes)} phonemes")


if __name__ == "__main__":
    main()
