"""What a recording shows of speech, so that a person knows what to record again.

There is no speech recogniser here: frames are sorted by what loudness, spectrum and lips alone can tell, into classes
that an avatar must have seen to speak well. The seconds are a guide, not a transcript; a frame may count for two classes.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_opening, maximum_filter1d

from process_data.lip_lag import HOPS_PER_FRAME, band_power
from shared.landmarks import FPS, eye_opening, lip_opening

BLOCK = 2500  # frames whose spectra are held at once
HISS_BAND = 11  # mel bands from here on lie above 3 kHz
HISS_SHARE = 0.4  # of a frame's power
SPEECH_DB = 22  # below the loudest twentieth of the frames
PAUSE_DB = 32
QUIETEST = 1e-3  # band power of a recording that is silence throughout (its loudest twentieth)
WITHIN_SPEECH = 3  # frames; lips that close for p, b or m have sound this near on both sides
PAUSE = 8  # frames; a shorter quiet stretch belongs to the speech (p t k are silent)
CLOSED, PARTED, WIDE = 1.2, 2.0, 6.5  # mm of lip opening, eye corners 90 mm apart
SPREAD, ROUNDED = 1.035, 0.93  # mouth width over that of closed lips
SHUT_LIDS = 0.3  # of the usual lid opening


@dataclass(frozen=True)
class SpeechCoverage:
    """A class of sound or shape: seconds found in the clip, whether that is enough, and what to read or do if not."""

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
    """Samples (n,) -> level (T,) dB and the share (T,) of a frame's power that lies in the hissing bands."""
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
    """Frames (T,) bool with speech within `reach` frames both before and after (or in) them."""
    size = reach + 1
    marks = speech.astype(np.uint8)
    before = maximum_filter1d(marks, size, origin=(size - 1) // 2, mode="constant")
    after = maximum_filter1d(marks[::-1], size, origin=(size - 1) // 2, mode="constant")[::-1]
    return (before & after).astype(bool)


def classify(samples: np.ndarray, landmarks: np.ndarray) -> dict[str, np.ndarray]:
    """Which frames of samples (640·T,) with landmarks (T,68,3) show each of CLASSES: (T,) bool, in the same order."""
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
    """Seconds of each class of sound and lip shape in samples (640·T,) with landmarks (T,68,3), in a fixed order."""
    found = classify(samples, landmarks)
    return [SpeechCoverage(name, float(found[name].sum()) / FPS, bool(found[name].sum() >= least * FPS), advice)
            for name, (least, advice) in CLASSES.items()]
