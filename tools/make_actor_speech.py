"""Makes the synthetic actor's speech with the system's espeak-ng: sound and phoneme times of one synthesis run.

The results are shipped in process_data/data, so nobody needs espeak-ng to use them. To make them again, on a system
where libespeak-ng is installed (`apt-get install libespeak-ng1`), run

    python -m tools.make_actor_speech
"""

import ctypes
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
_RETRIEVAL, _PHONEME_EVENTS, _UTF8, _END_PAUSE = 1, 1, 1, 0x1000
_EVENT_END, _EVENT_PHONEME = 0, 7
_RATE, _PITCH = 1, 3


class _Id(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int), ("unique_identifier", ctypes.c_uint), ("text_position", ctypes.c_int),
        ("length", ctypes.c_int), ("audio_position", ctypes.c_int), ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p), ("id", _Id),
    ]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class Espeak:
    """The system's libespeak-ng, loaded once; `speak` returns the sound and the phonemes of one run."""

    def __init__(self, voice: str = VOICE) -> None:
        name = ctypes.util.find_library("espeak-ng")
        if name is None:
            raise TalkheadError("libespeak-ng was not found; install it (apt-get install libespeak-ng1)")
        self._library = ctypes.CDLL(name)
        self._rate = self._library.espeak_Initialize(_RETRIEVAL, 400, None, _PHONEME_EVENTS)
        if self._rate <= 0 or self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise TalkheadError(f"libespeak-ng cannot start with the voice {voice!r}; check that espeak-ng-data is there")

    def speak(self, sentence: Sentence) -> tuple[np.ndarray, list[tuple[str, float, float]]]:
        """Sentence -> sound (n,) float32 at 16 kHz, and (espeak phoneme mnemonic, start, stop) in seconds."""
        pieces: list[np.ndarray] = []
        marks: list[tuple[float, str]] = []

        def receive(samples, count, events) -> int:
            if samples and count:
                pieces.append(np.ctypeslib.as_array(samples, (count,)).astype(np.float32) / 32768)
            k = 0
            while events[k].type != _EVENT_END:
                if events[k].type == _EVENT_PHONEME:
                    marks.append((events[k].audio_position / 1000, events[k].id.string.decode("utf-8", "replace")))
                k += 1
            return 0

        callback = _CALLBACK(receive)
        self._library.espeak_SetSynthCallback(callback)
        self._library.espeak_SetParameter(_RATE, sentence.rate, 0)
        self._library.espeak_SetParameter(_PITCH, sentence.pitch, 0)
        text = sentence.text.encode()
        self._library.espeak_Synth(text, len(text) + 1, 0, 1, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        sound = np.concatenate(pieces)
        end = len(sound) / self._rate
        ratio = Fraction(SAMPLE_RATE, self._rate)
        stops = [start for start, _ in marks[1:]] + [end]
        phonemes = [(name, start, stop) for (start, name), stop in zip(marks, stops)
                    if stop > start and name.strip("_:")]
        return resample_poly(sound, ratio.numerator, ratio.denominator).astype(np.float32), phonemes


def make_utterance(espeak: Espeak, sentences: list[Sentence]) -> tuple[np.ndarray, list[dict]]:
    """Sentences -> sound (n,) float32 at 16 kHz, peak 0.7, and its phonemes {"phoneme", "start", "stop"} in seconds."""
    sounds = [np.zeros(round(LEAD_IN * SAMPLE_RATE), np.float32)]
    times = []
    for sentence in sentences:
        offset = sum(map(len, sounds)) / SAMPLE_RATE
        sound, phonemes = espeak.speak(sentence)
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
    espeak = Espeak()
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
