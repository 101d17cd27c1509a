"""The scene of a finished picture: what stands behind the person, how large it is, and where in it the person is."""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import ImageColor

from shared.compiled import cached_njit
from shared.errors import TalkheadError
from shared.media.container import is_picture, open_media, video_tracks
from shared.media.video_io import probe, read_png, read_video

OWN, NONE = "plate", "none"  # the avatar's own background; a transparent one
SMALLEST, LARGEST = 64, 8192  # pixels of a side
HALF = 128  # alpha of 255


class Backdrop(Protocol):
    """What is seen behind the person."""

    def at(self, first: int, count: int) -> np.ndarray:
        """uint8 RGB (count, H, W, 3) from frame `first` of 25 a second on, or (1, H, W, 3) if it stands still."""


class Still:
    """A backdrop that does not change: uint8 (H, W, 3)."""

    def __init__(self, picture: np.ndarray) -> None:
        self.picture = np.ascontiguousarray(picture[None])

    def at(self, first: int, count: int) -> np.ndarray:
        return self.picture


class Playing:
    """A video as backdrop, over and over from its beginning, at its own speed; it covers width x height pixels.

    It is decoded as it is asked for, so it may be of any length. Raises TalkheadError like `read_video`.
    """

    def __init__(self, path: Path, width: int, height: int) -> None:
        probe(path)
        self.path, self.size = path, (width, height)
        self._start()

    def _start(self) -> None:
        self._next, self._frames = 0, self._forever()

    def _forever(self) -> Iterator[np.ndarray]:
        while True:
            yield from read_video(self.path)

    def at(self, first: int, count: int) -> np.ndarray:
        """As of Backdrop; quick if `first` follows the frames that were asked for last."""
        if first < self._next:
            self._start()
        for _ in range(first - self._next):
            next(self._frames)
        self._next = first + count
        return np.stack([cover(next(self._frames), *self.size) for _ in range(count)])


def cover(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """The middle of uint8 (H, W, 3), as much of it as has the shape of width x height, at that size."""
    own_height, own_width = picture.shape[:2]
    scale = max(width / own_width, height / own_height)
    wide, high = min(own_width, max(1, round(width / scale))), min(own_height, max(1, round(height / scale)))
    left, top = (own_width - wide) // 2, (own_height - high) // 2
    return resized(picture[top : top + high, left : left + wide], width, height)


def resized(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """uint8 (H, W, C) at another size."""
    if picture.shape[:2] == (height, width):
        return picture
    import cv2

    smaller = picture.shape[0] * picture.shape[1] > width * height
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)


def background_file(background: str | Path) -> Path | None:
    """The file that --background names, unless it names none."""
    known = str(background) in (OWN, NONE) or _colour(str(background)) is not None
    return None if known else Path(background)


def _colour(text: str) -> tuple[int, ...] | None:
    try:
        colour = ImageColor.getrgb(text)
    except ValueError:
        return None
    return colour if len(colour) == 3 else None


def open_backdrop(background: str | Path, width: int, height: int) -> Backdrop:
    """A colour (`#rrggbb` or a name of CSS), a picture or a video, cropped to cover width x height. Raises TalkheadError."""
    text = str(background)
    colour, path = _colour(text), Path(background)
    if colour is not None:
        return Still(np.full((height, width, 3), colour, np.uint8))
    if not path.exists() and not path.suffix:
        near = difflib.get_close_matches(text.lower(), (OWN, NONE, *ImageColor.colormap), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise TalkheadError(f"--background takes {OWN}, {NONE}, a colour such as white or #00ff00, a picture or a video, "
                            f"found {text!r}{hint}")
    with open_media(path, "picture or video") as container:
        still = is_picture(container)
        if not still and not video_tracks(container, path):
            raise TalkheadError(f"{path} holds neither picture nor video; name a file that does")
    return Still(cover(read_png(path), width, height)) if still else Playing(path, width, height)


def frame_size(size: str | None, width: int, height: int) -> tuple[int, int]:
    """--size -> width and height: "720" is a height, with the shape of width x height kept; None is width x height itself.

    Raises TalkheadError for anything but even numbers within bounds.
    """
    if size is None:
        return width, height
    found = re.fullmatch(r"(?:(\d{1,5})[x×:])?(\d{1,5})", str(size).strip().lower())
    wide, high = (0, 0) if found is None else (int(found[1] or 0), int(found[2]))
    if found is not None and found[1] is None:
        wide = 2 * round(width * high / height / 2)
    if not all(SMALLEST <= side <= LARGEST and side % 2 == 0 for side in (wide, high)):
        raise TalkheadError(f"--size {size}: expected a height or WIDTHxHEIGHT in even numbers from {SMALLEST} to {LARGEST}, "
                            "such as 720 or 1280x720")
    return wide, high


class Scene:
    """Puts a person, drawn at the size of `plate` (H, W, 3) uint8, into a picture of `size`, before `background`.

    Nothing is stretched. Where the picture has another shape than the plate, the person is as large as fits; the avatar's own
    plate then stands in the middle between black bars, while any other background fills the picture and the person stands at
    the middle of its lower edge. `width` and `height` are of the finished picture, which has alpha if it is `transparent`.
    """

    def __init__(self, plate: np.ndarray, background: str | Path = OWN, size: str | None = None) -> None:
        own_height, own_width = plate.shape[:2]
        self.width, self.height = frame_size(size, own_width, own_height)
        self.transparent = str(background) == NONE
        own = str(background) == OWN
        # the person over the backdrop, pixel by pixel, is the finished frame
        self.plain = not self.transparent and (self.width, self.height) == (own_width, own_height)
        scale = min(self.width / own_width, self.height / own_height)
        self._wide, self._high = min(self.width, round(own_width * scale)), min(self.height, round(own_height * scale))
        left, top = (self.width - self._wide) // 2, (self.height - self._high) // (2 if own else 1)
        self._box = np.s_[top : top + self._high, left : left + self._wide]
        self._open_sides, self._cut = not own and left > 0, False
        self.backdrop: Backdrop
        if self.transparent:
            self.backdrop = Still(np.zeros((self.height, self.width, 3), np.uint8))
        elif own:
            framed = np.zeros((self.height, self.width, 3), np.uint8)
            framed[self._box] = resized(plate, self._wide, self._high)
            self.backdrop = Still(framed)
        else:
            self.backdrop = open_backdrop(background, self.width, self.height)

    def compose(self, person: np.ndarray, first: int) -> np.ndarray:
        """Premultiplied RGBA uint8 (n, H, W, 4) of frames from `first` on -> uint8 (n, height, width, 3), or straight RGBA
        (n, height, width, 4) if transparent."""
        if self._open_sides and not self._cut:
            self._cut = bool(person[:, :, [0, -1], 3].max() >= HALF)
        placed = [resized(rgba, self._wide, self._high) for rgba in person]
        if self.transparent:
            out = np.zeros((len(person), self.height, self.width, 4), np.uint8)
            for picture, rgba in zip(out, placed):
                _straight(rgba, picture[self._box])
            return out
        behind = self.backdrop.at(first, len(person))
        out = np.array(np.broadcast_to(behind, (len(person), self.height, self.width, 3)))
        for picture, rgba in zip(out, placed):
            _over(rgba, picture[self._box])
        return out

    def warnings(self) -> list[str]:
        """A sentence if shoulders end in the midst of the pictures composed so far."""
        if not self._cut:
            return []
        return ["the person reaches the sides of the avatar's picture and is cut off there, in the midst of this wider one; "
                "choose a --size of the avatar's own shape, or a higher one"]


@cached_njit()
def _over(rgba: np.ndarray, picture: np.ndarray) -> None:
    """Put premultiplied uint8 (H, W, 4) over uint8 (H, W, 3), in place."""
    for y in range(rgba.shape[0]):
        for x in range(rgba.shape[1]):
            through = 255 - rgba[y, x, 3]
            for c in range(3):
                picture[y, x, c] = min(255, rgba[y, x, c] + (through * picture[y, x, c] + 127) // 255)


@cached_njit()
def _straight(rgba: np.ndarray, picture: np.ndarray) -> None:
    """Premultiplied uint8 (H, W, 4) -> straight colours and alpha, into uint8 (H, W, 4)."""
    for y in range(rgba.shape[0]):
        for x in range(rgba.shape[1]):
            alpha = int(rgba[y, x, 3])
            picture[y, x, 3] = alpha
            for c in range(3):
                picture[y, x, c] = min(255, (255 * int(rgba[y, x, c]) + alpha // 2) // max(alpha, 1))
