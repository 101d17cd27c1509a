"""The synthetic actor's speech as landmark motion: phonemes with their times -> blended mouth shapes."""

import json
from pathlib import Path
from typing import Literal

import numpy as np

from process_data.actor.identity import make_identity
from process_data.actor.proportions import JAW_WEIGHT, neutral_landmarks, rotate_jaw
from shared.errors import TalkheadError
from shared.landmark_edit import apply_blink, natural_blinks
from shared.landmarks import BROW_LEFT, BROW_RIGHT, FPS, LIPS, SAMPLES_PER_FRAME
from shared.media.audio_io import load_audio

DATA = Path(__file__).parents[1] / "data"
UTTERANCES = {"train": "actor_speech", "test": "actor_test"}

# mouth shapes: jaw drop mm, inner lip gap mm, corners outward mm, lips forward mm, lower lip under the teeth 0–1
SHAPES: dict[str, tuple[float, float, float, float, float]] = {
    "silence": (0, 0, 0, 0, 0),
    "closed": (1.0, 0, 0, 0.6, 0),
    "teeth on lip": (1.8, 2.2, 0.6, 0, 1),
    "between teeth": (3.2, 4.8, 0.5, 0.2, 0),
    "teeth": (1.2, 3.2, 1.6, 0.2, 0),
    "tongue tip": (3.0, 4.8, 0.6, 0, 0),
    "back": (3.5, 5.0, 0.2, 0, 0),
    "rush": (2.0, 4.6, -4.0, 4.2, 0),
    "r": (2.8, 4.2, -3.4, 2.8, 0),
    "open": (9.5, 14, 0.8, 0, 0),
    "mid": (6.5, 10.5, 1.2, 0, 0),
    "wide": (3, 5.6, 3.0, -0.4, 0),
    "central": (4, 6, 0, 0, 0),
    "half round": (6.5, 8.5, -4.0, 3.0, 0),
    "round": (3.5, 4.5, -6.0, 4.2, 0),
    "pucker": (2, 3.0, -7.0, 5.0, 0),
}
# beginnings of espeak-ng's phoneme mnemonics that have each shape
SINGLE = {
    "closed": "p b m", "teeth on lip": "f v", "between teeth": "T D", "teeth": "s z", "tongue tip": "t d n l",
    "back": "k g N", "rush": "S Z tS dZ", "r": "r 3", "open": "a A 0", "mid": "V E e", "wide": "I i j ;",
    "central": "@ h ?", "half round": "O o", "round": "U", "pucker": "u w",
}
DIPHTHONGS = {
    "aI": ("open", "wide"), "aU": ("open", "round"), "OI": ("half round", "wide"), "eI": ("mid", "wide"),
    "oU": ("half round", "pucker"), "o@": ("half round", "r"), "O@": ("half round", "r"), "e@": ("mid", "r"),
    "i@": ("wide", "central"), "U@": ("round", "r"), "A@": ("open", "r"),
}
VISEMES = {start: (shape,) for shape, starts in SINGLE.items() for start in starts.split()} | DIPHTHONGS
# weight of a shape against its neighbours in time; 1 for those not named
STRENGTH = {
    "closed": 3.0, "teeth on lip": 2.6, "pucker": 1.6, "rush": 1.5, "silence": 1.5, "round": 1.3, "open": 1.2, "teeth": 1.1,
    "r": 0.9, "between teeth": 0.8, "central": 0.6, "tongue tip": 0.5, "back": 0.45,
}
SPREAD = 0.035  # seconds in which a shape's influence decays by e before and after its own time
LIP_CONTACT = 0.06  # seconds for which p, b and m keep the lips together
CONTACT_RAMP = 0.05  # seconds in which they part


def visemes(phoneme: str) -> tuple[str, ...]:
    """espeak-ng phoneme mnemonic -> its mouth shapes in order (two for a diphthong). Raises TalkheadError if unknown."""
    shapes = VISEMES.get(phoneme[:2]) or VISEMES.get(phoneme[:1])
    if shapes is None:
        raise TalkheadError(f"the phoneme {phoneme!r} has no mouth shape; add it to SINGLE in process_data/actor/speech.py")
    return shapes


def load_phonemes(utterance: Literal["train", "test"]) -> list[tuple[str, float, float]]:
    """(phoneme, start, stop) in seconds of a shipped utterance. Raises TalkheadError for an unknown name."""
    if utterance not in UTTERANCES:
        raise TalkheadError(f"the shipped utterances are {', '.join(UTTERANCES)}; found {utterance!r}")
    content = json.loads((DATA / f"{UTTERANCES[utterance]}.json").read_text(encoding="utf-8"))
    return [(item["phoneme"], item["start"], item["stop"]) for item in content["phonemes"]]


def segments(phonemes: list[tuple[str, float, float]], duration: float) -> list[tuple[str, float, float]]:
    """Phonemes -> (mouth shape, start, stop) without gaps: diphthongs split, silence between."""
    out: list[tuple[str, float, float]] = []
    end = 0.0
    for name, start, stop in phonemes:
        if start - end > 0.08:
            out.append(("silence", end, start))
        shapes = visemes(name)
        cuts = np.linspace(start, stop, len(shapes) + 1)
        out += [(shape, float(a), float(b)) for shape, a, b in zip(shapes, cuts[:-1], cuts[1:])]
        end = stop
    out.append(("silence", end, duration))
    return out


def mouth_track(phonemes: list[tuple[str, float, float]], frames: int) -> np.ndarray:
    """(T, 5) mouth parameters in the order of SHAPES, at the middle of every frame.

    Each shape's target is weighted by a dominance that is flat over its own time and dies away exponentially on both
    sides (after Cohen and Massaro, Modeling coarticulation in synthetic visual speech, 1993); then p, b, m close the lips.
    """
    parts = segments(phonemes, frames / FPS)
    time = (np.arange(frames) + 0.5) / FPS
    start, stop = np.array([p[1] for p in parts]), np.array([p[2] for p in parts])
    strength = np.array([STRENGTH.get(p[0], 1.0) for p in parts])
    targets = np.array([SHAPES[p[0]] for p in parts])
    inner = np.minimum(0.25 * (stop - start), 0.08)
    away = np.maximum(0, np.maximum(start + inner - time[:, None], time[:, None] - stop + inner))
    dominance = strength * np.exp(-away / SPREAD)
    track = dominance @ targets / dominance.sum(1, keepdims=True)
    for shape, a, b in parts:
        if shape == "closed":
            middle = a + 0.45 * (b - a)
            hold = max(LIP_CONTACT, 0.7 * (b - a)) / 2
            away_from = np.clip((np.abs(time - middle) - hold) / CONTACT_RAMP, 0, 1)
            track[:, 1] *= away_from * away_from * (3 - 2 * away_from)
        elif shape == "silence" and b - a > 0.2:
            away_from = np.clip(np.maximum(a + 0.12 - time, time - b + 0.06) / 0.08, 0, 1)
            track[:, :2] *= away_from[:, None]
    return track


def shape_mouth(neutral: np.ndarray, track: np.ndarray) -> np.ndarray:
    """neutral (68, 3) metres and mouth parameters (T, 5) in the order of SHAPES -> landmarks (T, 68, 3) metres."""
    jaw, gap, wide, forward, tuck = track.T[:, :, None]
    base = neutral * 1000
    face_jaw = JAW_WEIGHT.copy()
    face_jaw[LIPS] = 0
    out = np.repeat(base[None], len(track), axis=0)
    out[:, :17] = rotate_jaw(out, face_jaw, track[:, 0] / 100)[:, :17]
    half = (base[54, 0] - base[48, 0]) / 2
    across = base[:, 0] / half  # −1 at one mouth corner, 1 at the other
    arch = np.clip(1 - across**2, 0, 1)
    inner = np.zeros(68)
    inner[[60, 61, 62, 63, 64, 65, 66, 67]] = 1
    upper, lower = np.zeros(68), np.zeros(68)
    upper[[49, 50, 51, 52, 53]] = 0.75
    upper[[61, 62, 63]] = 1
    lower[[55, 56, 57, 58, 59]] = 0.82
    lower[[65, 66, 67]] = 1
    # the same profile above and below, so that a gap of zero is closed lips everywhere
    profile = np.clip(arch, 0, 1) ** 0.55
    raise_, drop = 0.22 * gap, 0.78 * gap
    lips = np.zeros(68)
    lips[LIPS] = 1
    corners = lips * (1 - profile)
    out[..., 1] += raise_ * upper * profile - drop * lower * profile - 0.28 * gap * corners
    # jaw movement that the gap does not explain carries both lips a little
    out[..., 1] -= 0.15 * jaw * lips * profile
    out[..., 2] -= 0.22 * drop * lower * profile
    outward = np.clip(np.abs(across), 0, 1) * np.sign(across) * lips
    out[..., 0] += wide * outward
    out[..., 2] += (forward * (0.55 + 0.45 * arch) - 0.25 * wide * (1 - arch)) * lips
    pout = np.clip(forward, 0, None)
    out[..., 1] += 0.18 * pout * (upper - inner * upper) - 0.22 * pout * (lower - inner * lower)
    out[..., 1] += np.minimum(1.1 * tuck, gap) * profile * lower
    out[..., 2] -= tuck * 2.2 * profile * lower
    return out / 1000


def animate(neutral: np.ndarray, track: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mouth parameters (T, 5) -> landmarks (T, 68, 3) float32 metres with seeded blinks, brows and a trace of a smile."""
    frames = len(track)
    landmarks = shape_mouth(neutral, track)
    time = np.arange(frames) / FPS
    brows = np.sum([np.sin(2 * np.pi * rate * time + rng.uniform(0, 6.28)) for rate in (0.11, 0.23, 0.41)], axis=0) / 3
    landmarks[:, BROW_RIGHT + BROW_LEFT, 1] += 0.0016 * brows[:, None]
    landmarks[:, [37, 38, 43, 44], 1] += 0.0003 * brows[:, None]
    smile = 0.5 + 0.5 * np.sum([np.sin(2 * np.pi * rate * time + rng.uniform(0, 6.28)) for rate in (0.07, 0.17)], axis=0) / 2
    for corners, side in (((48, 60), -1), ((54, 64), 1)):
        landmarks[:, corners] += 0.0011 * smile[:, None, None] * np.array([side, 0.8, -0.3])
    return apply_blink(landmarks, natural_blinks(frames, rng)).astype(np.float32)


def actor_landmarks(utterance: Literal["train", "test"] = "train", seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A shipped utterance as the person of `seed` says it: (sound (640·T,) float32 16 kHz, landmarks (T, 68, 3) metres)."""
    phonemes = load_phonemes(utterance)
    sound = load_audio(DATA / f"{UTTERANCES[utterance]}.flac")
    frames = len(sound) // SAMPLES_PER_FRAME
    rng = np.random.default_rng([seed, 10, list(UTTERANCES).index(utterance)])
    neutral = neutral_landmarks(make_identity(seed))
    return sound[: frames * SAMPLES_PER_FRAME], animate(neutral, mouth_track(phonemes, frames), rng)
