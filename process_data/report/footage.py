"""What some frames of a clip tell of the footage: hair edges, background near the head, how the torso follows its motion.

The frames are spread over the good ones and measured at SIDE pixels.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import cv2
import numpy as np

from process_data.segmentation.matting import plate_noise
from process_data.tracking.torso_motion import compose, concatenate, inverse, pixel_numbers
from shared.arrays import evenly
from shared.camera import project, umeyama
from shared.clip import BACKGROUND, HEAD, NECK, TORSO, Clip, good_frames
from shared.media.video_io import read_frames_at, read_png

FEWEST, EVERY, MOST = 16, 25, 56  # frames that are looked at: one of `EVERY`, but at least and at most so many
SIDE = 256  # pixels: larger pictures are measured at this size
PICTURE = 512  # pixels: larger pictures are kept at this size, to be shown
BAND = 0.02  # of the picture's width: reach of the outline's band to either side
RING = 0.08  # of the picture's width to either side of the head's outline: what turns and nods cover and uncover
COLOR_REACH = 0.04  # of the picture's width over which the colour inside the outline is averaged
SURE = 250  # alpha of pixels that are the person for sure
LEAST_PIXELS = 60  # of a band, ring or torso that is judged
OUTLIER = 25.0  # grey levels: 2.5 times the noise that matching of the torso expects
BLUR = 1.0  # pixels of SIDE, before torso pictures are compared, since the moved one is blurred by its interpolation


@dataclass(frozen=True)
class Sample:
    """A frame: number, shot, picture (n,n,3) uint8 RGB of at most PICTURE; and at SIDE the picture `small`, labels, alpha and the
    share of each pixel that is `head`, all uint8; `after`: alpha and head of the next frame, moved back by the head's motion,
    None at the end of a shot."""

    t: int
    shot: int
    picture: np.ndarray
    small: np.ndarray
    labels: np.ndarray
    alpha: np.ndarray
    head: np.ndarray
    after: tuple[np.ndarray, np.ndarray] | None


def sample_frames(clip: Clip) -> np.ndarray:
    """Numbers (n,) of the frames to look at, ascending, spread over the good ones (over all, if none is good)."""
    good = good_frames(clip.info.excluded, clip.info.frames)
    numbers = np.flatnonzero(good) if good.any() else np.arange(clip.info.frames)
    return numbers[evenly(len(numbers), min(max(len(numbers) // EVERY, FEWEST), MOST))]


def reduced(image: np.ndarray, side: int) -> np.ndarray:
    """A square picture (n,n[,3]) at `side` pixels, if it is larger."""
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA) if len(image) > side else image


def _two(stream: Iterable[np.ndarray]) -> list[np.ndarray]:
    return list(islice(stream, 2))


def samples(clip: Clip, frames: np.ndarray) -> Iterator[Sample]:
    """The frames (n,), ascending, of a clip. Where the clip has no alpha, it is 255 on the person."""
    info = clip.info
    shots = clip.shot_of_frames()
    side = min(SIDE, info.width)
    rest = project(clip.load_neutral(), clip.load_poses().astype(float), info.intrinsics)[:, :, :2] * side / info.width
    for t, picture in zip(map(int, frames), read_frames_at(clip.video, frames)):
        pair = t + 1 < info.frames and shots[t + 1] == shots[t]
        end = t + 1 + pair
        labels = _two(clip.label_frames(t, end))
        soft = clip.alpha.is_file()
        alphas = _two(clip.alpha_frames(t, end)) if soft else [np.uint8(255) * (part > BACKGROUND) for part in labels]
        heads = [reduced(np.uint8(255) * (part >= HEAD), side) for part in labels]
        small_alphas = [reduced(part, side) for part in alphas]
        after = None
        if pair:
            scale, turn, shift = umeyama(rest[t + 1], rest[t])
            back = np.column_stack([scale * turn, shift])
            after = moved(small_alphas[1], back), moved(heads[1], back)
        small_labels = cv2.resize(labels[0], (side, side), interpolation=cv2.INTER_NEAREST)
        yield Sample(t, int(shots[t]), reduced(picture, PICTURE), reduced(picture, side), small_labels, small_alphas[0], heads[0],
                     after)


def moved(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """An image under a similarity (2,3) of continuous coordinates, in which the first pixel's centre lies at 0.5."""
    return cv2.warpAffine(image, pixel_numbers(matrix), image.shape[1::-1], flags=cv2.INTER_LINEAR,
                          borderMode=cv2.BORDER_REPLICATE)


def _widened(mask: np.ndarray, reach: float) -> np.ndarray:
    size = 2 * max(1, round(reach)) + 1
    return cv2.dilate(mask.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))) > 0


@dataclass(frozen=True)
class Plate:
    """A shot's background plate at SIDE: colours (h,w,3), seen (h,w) bool or None where that is not known, and the squared
    contrast (h,w) from which a colour before it is told from it with more trust than not, see `matting.plate_noise`."""

    color: np.ndarray
    seen: np.ndarray | None
    noise: np.ndarray

    @classmethod
    def read(cls, clip: Clip, shot: int) -> "Plate":
        side = min(SIDE, clip.info.width)
        color = reduced(read_png(clip.plate_path(shot)), side)
        seen = None
        if clip.seen_path(shot).is_file():
            seen = reduced(read_png(clip.seen_path(shot))[..., 0], side) > 127
        return cls(color, seen, plate_noise(color, np.ones(color.shape[:2], bool) if seen is None else seen))


@dataclass(frozen=True)
class Edges:
    """The head's outline in a frame: `band` (h,w) along the background, where alpha is doubtful in it, where alpha or label jumps
    to the next frame; the doubtful share of the band, and by how many pixels of SIDE the outline (`edge`) and the border to neck
    and clothes jump; NaN: unknown."""

    band: np.ndarray
    doubtful: np.ndarray
    jumps: np.ndarray
    share: float
    edge: float
    border: float


def edges(sample: Sample, plate: Plate) -> Edges:
    """Judge alpha along the outline by what it is made of: a pixel is doubtful where the colour inside the outline nearby differs
    so little from the plate, or the plate was filled in so that they may, that the matte trusts colours by less than half."""
    side = sample.small.shape[1]
    reach = BAND * side
    head, room = sample.head > 127, sample.labels == BACKGROUND
    band = _widened(head, reach) & _widened(room, reach) & (head | room)
    size = 2 * round(COLOR_REACH * side) + 1
    weight = ((sample.alpha >= SURE) & (sample.labels >= NECK)).astype(np.float32)
    inside = cv2.blur(np.dstack([sample.small * weight[..., None], weight]), (size, size))
    known_color = inside[..., 3] > 1e-6
    contrast = ((inside[..., :3] / np.maximum(inside[..., 3:], 1e-6) - plate.color) ** 2).sum(-1)
    doubtful = band & known_color & (contrast < plate.noise)
    share = _mean(doubtful, band)
    edge = border = np.nan
    jumps = np.zeros_like(band)
    if sample.after is not None:
        alpha, moved_head = sample.after
        edge = _jump(sample.alpha, alpha, band, reach)
        others = (sample.labels == TORSO) | (sample.labels == NECK)
        along = _widened(head, reach) & _widened(others, reach)
        border = _jump(sample.head, moved_head, along, reach)
        jumps = (band & (cv2.absdiff(sample.alpha, alpha) > 127)) | (along & (cv2.absdiff(sample.head, moved_head) > 127))
    return Edges(band, doubtful, jumps, share, edge, border)


def _mean(values: np.ndarray, mask: np.ndarray) -> float:
    """Mean of values (h,w) over a mask, NaN over hardly a pixel."""
    count = int(mask.sum())
    return float(values[mask].mean()) if count >= LEAST_PIXELS else float("nan")


def _jump(before: np.ndarray, after: np.ndarray, band: np.ndarray, reach: float) -> float:
    """Mean way of the edge between two masks (h,w) uint8 of 0 … 255, in pixels: changed area over the length of the band, whose
    area is twice its reach times that."""
    return 2 * reach * _mean(cv2.absdiff(before, after), band) / 255


def ring(sample: Sample) -> np.ndarray:
    """(h,w) bool: within RING of the head's outline against the background, on either side."""
    reach, head, room = RING * sample.small.shape[1], sample.head > 127, sample.labels == BACKGROUND
    return (_widened(head, reach) & room) | (_widened(room, reach) & head)


@dataclass(frozen=True)
class TorsoFit:
    """How well a reference frame, moved, shows the torso: where it was compared (h,w), where it is off by more than OUTLIER, rms
    grey levels and the share that is off; NaN where there is hardly any torso."""

    seen: np.ndarray
    off: np.ndarray
    rms: float
    share: float


def _gray(sample: Sample) -> np.ndarray:
    return cv2.GaussianBlur(cv2.cvtColor(sample.small, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), BLUR)


def _torso(sample: Sample) -> np.ndarray:
    """uint8 (h,w), 255 on the torso away from its edges."""
    whole = ((sample.labels == TORSO) & (sample.alpha >= SURE)).astype(np.uint8)
    return 255 * cv2.erode(whole, np.ones((5, 5), np.uint8))


def torso_fit(sample: Sample, reference: Sample, matrix: np.ndarray) -> TorsoFit:
    """Compare a frame with the reference frame under the similarity (2,3) from it to the frame, but for gain and offset."""
    there = (moved(_torso(reference), matrix) > 250) & (_torso(sample) > 0)
    off = np.zeros_like(there)
    if there.sum() < LEAST_PIXELS:
        return TorsoFit(there, off, float("nan"), float("nan"))
    shown, expected = _gray(sample)[there], moved(_gray(reference), matrix)[there]
    residual = shown - expected - np.median(shown - expected)
    for _ in range(2):  # without the outliers of the step before
        fits = np.abs(residual) <= OUTLIER
        columns = np.stack([expected, np.ones_like(expected)], axis=1)
        residual = shown - columns @ np.linalg.lstsq(columns[fits], shown[fits], rcond=None)[0]
    off[there] = np.abs(residual) > OUTLIER
    return TorsoFit(there, off, float(np.sqrt((residual**2).mean())), float(off[there].mean()))


def torso_fits(clip: Clip, looked: Sequence[Sample]) -> list[TorsoFit]:
    """Each frame against that of its shot whose torso motion is nearest to the median of the frames looked at."""
    motion = clip.load_torso_motion()[:, :4].astype(float)  # the similarity
    motion[:, :2] *= min(SIDE, clip.info.width) / clip.info.width
    references = {}
    for shot in {sample.shot for sample in looked}:
        here = [sample for sample in looked if sample.shot == shot]
        values = np.array([motion[sample.t] for sample in here])
        references[shot] = here[int(np.abs((values - np.median(values, axis=0)) * [1, 1, SIDE, SIDE]).sum(1).argmin())]
    found = []
    for sample in looked:
        reference, centre = references[sample.shot], np.array(sample.small.shape[1::-1]) / 2
        matrix = concatenate(compose(motion[sample.t], centre), inverse(compose(motion[reference.t], centre)))
        found.append(torso_fit(sample, reference, matrix))
    return found
