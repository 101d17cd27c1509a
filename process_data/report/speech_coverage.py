"""Seconds of each class of speech sounds and mouth shapes in a recording, to tell what should be recorded in addition.

Frames are classified by loudness, spectrum and lip shape alone, without speech recognition, so the seconds are a guide. A
frame may count for two classes. An avatar speaks badly what its recording hardly contains.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_opening, maximum_filter1d

from process_data.lip_lag import HOPS_PER_FRAME, band_power
from shared.landmarks import FPS, eye_opening, lip_opening

BLOCK = 2500  # frames whose spectra are in memory at once
HISS_BAND = 11  # first mel band above 3 kHz
HISS_SHARE = 0.4  # least share of a hissing frame's power in these bands
SPEECH_DB = 22  # speech is at most so much quieter than the loudest twentieth of the frames
PAUSE_DB = 32  # a pause is at least so much quieter
QUIETEST = 1e-3  # band power; if the loudest twentieth of the frames is below, the recording is silent
WITHIN_SPEECH = 3  # frames; when lips close for p, b or m, there is sound so near before and after
PAUSE = 8  # frames; a shorter quiet stretch belongs to the speech, since p, t and k are silent
CLOSED, PARTED, WIDE = 1.2, 2.0, 6.5  # lip opening in mm, at eye corners 90 mm apart
SPREAD, ROUNDED = 1.035, 0.93  # mouth width relative to closed lips
SHUT_LIDS = 0.3  # lid opening relative to the median


@dataclass(frozen=True)
class SpeechCoverage:
    """A class of speech: its name, seconds in the clip, whether that is enough, and what to read or do if not."""

    name: str
    seconds: float
    enough: bool
    advice: str


# name, seconds that are enough, what to do when scarce
CLASSES = {
    "silence": (2.0, "look into the camera for five seconds without speaking, lips closed"),
    "closed lips (p, b, m)": (1.5, "read: “Papa bought Emma a pair of brown maps. Mum, maybe Bob jumps by bus.”"),
    "half-open (e, a as in “cat”, uh)": (3.0, "read: “The black cat sat at the back, but ten men went ahead.”"),
    "wide open (ah, ow)": (1.5, "read: “Father, the car is far, far down the yard. Wow, how loud!”"),
    "spread (ee, ih)": (1.5, "read: “We see three geese each week. Please keep these cheap green peas.”"),
    "rounded (oo, oh, w)": (1.5, "read: “Who would choose two blue shoes? So go slow, you know the road home.”"),
    "hissing (s, z, sh, ch, f)": (1.5, "read: “She sells sea shells. Fresh fish and cheese, six chips, such a fuss!”"),
    "closed eyes": (0.5, "blink as you usually do, and once or twice hold your eyes closed for a second"),
}


def _sound(samples: np.ndarray, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples (n,) 16 kHz -> level (T,) dB of each of `frames` and the share (T,) of its power in the hissing bands."""
    level, hiss = np.empty(frames), np.empty(frames)
    for start in range(0, frames, BLOCK):
        stop = min(start + BLOCK, frames)
        # four hops a frame, the first one centred 10 ms into it, so that together they cover the frame
        power = band_power(samples, HOPS_PER_FRAME * start + 1, HOPS_PER_FRAME * (stop - start))
        power = power.reshape(stop - start, HOPS_PER_FRAME, -1).mean(axis=1)
        total = power.sum(axis=1) + 1e-12
        level[start:stop] = 10 * np.log10(total)
        hiss[start:stop] = power[:, HISS_BAND:].sum(axis=1) / total
    return level, hiss


def _between_speech(speech: np.ndarray, reach: int) -> np.ndarray:
    """Speech flags (T,) -> (T,) bool: speech within `reach` frames before and after, or in the frame itself."""
    size = reach + 1
    marks = speech.astype(np.uint8)
    before = maximum_filter1d(marks, size, origin=(size - 1) // 2, mode="constant")
    after = maximum_filter1d(marks[::-1], size, origin=(size - 1) // 2, mode="constant")[::-1]
    return (before & after).astype(bool)


def classify(samples: np.ndarray, landmarks: np.ndarray) -> dict[str, np.ndarray]:
    """Samples (640·T,) and landmarks (T,68,3) metres -> for each name in CLASSES the frames (T,) bool that belong to it."""
    level, hiss = _sound(samples, len(landmarks))
    loud = np.quantile(level, 0.95)
    audible = loud > 10 * np.log10(QUIETEST)
    speech = (level > loud - SPEECH_DB) & audible
    pause = binary_opening((level < loud - PAUSE_DB) | ~audible | ~_between_speech(speech, PAUSE), np.ones(PAUSE))
    opening = 1000 * lip_opening(landmarks)
    width = landmarks[:, 54, 0] - landmarks[:, 48, 0]
    closed = opening < CLOSED
    rest = np.median(width[closed]) if closed.sum() > FPS else np.median(width)
    across = width / max(float(rest), 1e-6)
    hissing = speech & (hiss > HISS_SHARE)
    voiced = speech & ~hissing & (opening > CLOSED)
    rounded = across < ROUNDED
    spread = across > SPREAD
    lids = eye_opening(landmarks).mean(axis=1)
    return dict(zip(CLASSES, [
        pause & ~speech,
        closed & _between_speech(speech, WITHIN_SPEECH) & ~hissing,
        voiced & (opening > PARTED) & (opening <= WIDE) & ~rounded & ~spread,
        voiced & (opening > WIDE),
        voiced & spread & (opening <= WIDE),
        voiced & rounded,
        hissing,
        lids < SHUT_LIDS * np.median(lids),
    ]))


def speech_coverage(samples: np.ndarray, landmarks: np.ndarray) -> list[SpeechCoverage]:
    """Samples (640·T,) 16 kHz and landmarks (T,68,3) metres -> seconds of each class, in the order of CLASSES."""
    found = classify(samples, landmarks)
    return [SpeechCoverage(name, float(found[name].sum()) / FPS, bool(found[name].sum() >= least * FPS), advice)
            for name, (least, advice) in CLASSES.items()]
