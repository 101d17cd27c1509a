"""What a training step reads: frames, what lies behind the head, landmarks, poses and pixel weights."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.camera import project
from shared.clip import BACKGROUND, HEAD, MOUTH, Clip
from shared.errors import TalkheadError
from shared.landmarks import EYE_LEFT, EYE_RIGHT, LIPS, eye_opening, lip_opening

CHUNK = 64  # frames prepared at once for the GPU
KEPT_BYTES = 1 << 30  # of prepared pictures kept in memory where they do not stay on a GPU
WINDOW_MARGIN = 1 / 24  # room around the head, in picture widths
BAND = 1 / 128  # half-width, in picture widths, of the outline where labels are not trusted
CONTRAST = 0.02  # squared colour distance of head and plate from which a matte can be told


class Batch(NamedTuple):
    """Pictures are cropped to the head's window and float in [0, 1]."""

    frames: Tensor  # (B, H, W, 3)
    behind: Tensor  # (B, H, W, 3) the plate where the head is or may be, the frame itself elsewhere
    head: Tensor  # (B, H, W) 1 on head and mouth interior
    alpha: Tensor  # (B, H, W) the head's share of each pixel
    sure: Tensor  # (B, H, W) 1 where alpha is known
    landmarks: Tensor  # (B, 68, 3)
    poses: Tensor  # (B, 4, 4)


class Pictures(NamedTuple):
    """The same as it is kept, uint8."""

    frames: Tensor  # (B, H, W, 3)
    behind: Tensor  # (B, H, W, 3)
    head: Tensor  # (B, H, W) 0 or 1
    alpha: Tensor  # (B, H, W)
    sure: Tensor  # (B, H, W) 0 or 1


def box_mask(landmarks: Tensor, poses: Tensor, intrinsics: tuple[float, ...], width: int, height: int, part: list[int],
             margin: float = 0.25) -> Tensor:
    """Bool (B, H, W): the bounding box of the projected landmarks `part`, larger by `margin` of its width all round."""
    return inside(bounding_box(landmarks, poses, intrinsics, part, margin), width, height)


def bounding_box(landmarks: Tensor, poses: Tensor, intrinsics: tuple[float, ...], part: list[int],
                 margin: float) -> Tensor:
    """(B, 4) left, top, right, bottom in pixels of the projected landmarks `part`, `margin` of the width larger all round."""
    points = project(landmarks[:, part], poses, intrinsics)
    low, high = points.amin(1), points.amax(1)
    room = margin * (high - low)[:, :1]
    return torch.cat([low - room, high + room], 1)


def inside(boxes: Tensor, width: int, height: int) -> Tensor:
    """Boxes (B, 4) -> bool (B, H, W): pixels whose centre lies in the box."""
    x = torch.arange(width, device=boxes.device) + 0.5
    y = torch.arange(height, device=boxes.device) + 0.5
    columns = (x >= boxes[:, :1]) & (x <= boxes[:, 2:3])
    rows = (y >= boxes[:, 1:2]) & (y <= boxes[:, 3:])
    return rows[:, :, None] & columns[:, None, :]


def matte(frames: Tensor, plates: Tensor, head: Tensor, background: Tensor, reach: int,
          person: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Soft alpha along the head's outline, so that hair does not carry the colour of the plate with it.

    frames and plates (B, H, W, 3), head and background bool (B, H, W), reach in pixels. Within `reach` of the outline a
    pixel I is taken as a mix of the mean head colour F nearby and the plate B, so that alpha = (I - B)·(F - B) / |F - B|²;
    close to neck and torso only where it shows little but the plate. Where `person` (B, H, W), the person's share of each
    pixel, is given, it is alpha along the outline away from neck and torso. Returns alpha (B, H, W), where it is known (B, H, W),
    and bool (B, H, W) the outline's pixels that show the plate behind the head.
    """
    reach = max(1, reach)
    plane = head.float()[:, None]
    shrunk = -F.max_pool2d(-plane, 2 * reach + 1, 1, reach)
    band = F.max_pool2d(plane, 2 * reach + 1, 1, reach) > shrunk
    body = F.max_pool2d((~head & ~background).float()[:, None], 2 * reach + 1, 1, reach) > 0
    nearby = F.avg_pool2d(torch.cat([frames.movedim(-1, 1) * shrunk, shrunk], 1), 4 * reach + 1, 1, 2 * reach)
    spread = (nearby[:, :3] / nearby[:, 3:].clamp_min(1e-6)).movedim(1, -1) - plates
    contrast = spread.square().sum(-1)
    mixed = (((frames - plates) * spread).sum(-1) / contrast.clamp_min(1e-6)).clamp(0, 1)
    band, body, seen = band[:, 0], body[:, 0], nearby[:, 3] > 1e-3
    bare = (frames - plates).square().sum(-1) < 0.1 * contrast
    told = band & seen & (contrast > CONTRAST) & (~body | bare)
    alpha, edge = torch.where(told, mixed, plane[:, 0]), band & ~body
    if person is not None:
        alpha, told = torch.where(edge, person, alpha), told | edge
    return alpha, (told | ~band).float(), edge & background


def behind_head(frames: Tensor, plates: Tensor, head: Tensor, background: Tensor, open_air: Tensor, reach: int) -> Tensor:
    """What the head is drawn over, uint8 (B, H, W, 3), from frames and plates likewise and labels, bool (B, H, W).

    The frame itself outside the head; inside, and in the `open_air` along its outline, the plate; but near the jaw, within
    2 · `reach` of more neck and clothes than background, the mean colour of those, because that is what the jaw hides.
    """
    reach = max(1, reach)
    body = (~head & ~background).float()[:, None]
    planes = torch.cat([frames.movedim(-1, 1).float() * body, body, background.float()[:, None]], 1)
    near = F.avg_pool2d(planes, 4 * reach + 1, 1, 2 * reach).movedim(1, -1)
    clothed = head & (near[..., 3] > near[..., 4])
    colour = (near[..., :3] / near[..., 3:4].clamp_min(1e-6)).round().byte()
    over_plate = torch.where((head | open_air)[..., None], plates, frames)
    return torch.where(clothed[..., None], colour, over_plate)


def batches(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Rows (n,) in pieces of nearly equal length, at most `size`."""
    return np.array_split(rows, -(-len(rows) // size))


class HeadFrames:
    """Frames `indices` of one clip, by row, cropped to the window that the head ever enters.

    On CUDA the prepared pictures stay on the GPU if they fit into half of what is free there; otherwise a batch is read
    from the clip's cache and prepared when it is needed, and kept up to KEPT_BYTES, so that host memory does not grow with
    the clip.
    """

    def __init__(self, clip: Clip, indices: np.ndarray, device: torch.device) -> None:
        if len(indices) == 0:
            raise TalkheadError(f"{clip.root}: the train split holds no good frame")
        self.clip, self.indices, self.device = clip, indices, device
        x0, y0, x1, y1 = self._find_window()
        self.rows, self.columns = slice(y0, y1), slice(x0, x1)
        self.width, self.height = x1 - x0, y1 - y0
        fx, fy, cx, cy = clip.info.intrinsics
        self.intrinsics = (fx, fy, float(cx - x0), float(cy - y0))
        landmarks = clip.load_landmarks()[indices]
        self.landmarks = torch.from_numpy(landmarks).to(device)
        self.poses = torch.from_numpy(clip.load_poses()[indices]).to(device)
        self.plates = torch.from_numpy(clip.load_plates()[:, self.rows, self.columns]).to(device)
        self.shots = torch.from_numpy(clip.shot_of_frames()[indices]).to(device)
        self.boxes = torch.stack([bounding_box(self.landmarks, self.poses, self.intrinsics, part, margin)
                                  for part, margin in ((LIPS, 0.25), (EYE_RIGHT, 0.4), (EYE_LEFT, 0.4))], 1)
        self.chance = sampling_weights(landmarks)
        self.has_alpha = clip.alpha.is_file()
        self.resident: Pictures | None = None
        self.kept: dict[int, Pictures] = {}
        if device.type == "cuda" and len(indices) * self.width * self.height * 9 < torch.cuda.mem_get_info(device)[0] / 2:
            chunks = [self._prepare(rows) for rows in batches(np.arange(len(indices)), CHUNK)]
            self.resident = Pictures(*(torch.cat(parts) for parts in zip(*chunks)))

    def __len__(self) -> int:
        return len(self.indices)

    def _find_window(self) -> tuple[int, int, int, int]:
        info = self.clip.info
        seen = np.zeros((info.height, info.width), bool)
        for labels in self.clip.read_labels(self.indices[:: max(1, len(self.indices) // 200)]):
            seen |= (labels == HEAD) | (labels == MOUTH)
        if not seen.any():
            raise TalkheadError(f"{self.clip.root}: no training frame has head pixels in labels.mkv; "
                                "process the video again")
        margin = round(info.width * WINDOW_MARGIN)
        columns, rows = np.flatnonzero(seen.any(0)), np.flatnonzero(seen.any(1))
        return (max(0, columns[0] - margin), max(0, rows[0] - margin),
                min(info.width, columns[-1] + 1 + margin), min(info.height, rows[-1] + 1 + margin))

    def _prepare(self, rows: np.ndarray) -> Pictures:
        def read(source: Callable[[np.ndarray], np.ndarray]) -> Tensor:
            cropped = np.ascontiguousarray(source(self.indices[rows])[:, self.rows, self.columns])
            return torch.from_numpy(cropped).to(self.device)

        frames, labels = read(self.clip.read_frames), read(self.clip.read_labels)
        person = read(self.clip.read_alpha).float() / 255 if self.has_alpha else None
        head = (labels == HEAD) | (labels == MOUTH)
        plates = self.plates[self.shots[torch.from_numpy(rows).to(self.device)]]
        alpha, sure, open_air = matte(frames.float() / 255, plates.float() / 255, head, labels == BACKGROUND,
                                      round(BAND * self.clip.info.width), person)
        behind = behind_head(frames, plates, head, labels == BACKGROUND, open_air, round(BAND * self.clip.info.width))
        return Pictures(frames, behind, head.byte(), (alpha * 255).round().byte(), sure.byte())

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """`count` rows, rare expressions more often."""
        return rng.choice(len(self), count, p=self.chance)

    def pictures(self, rows: np.ndarray) -> Pictures:
        """The frames of `rows` on the device, as they are kept."""
        if self.resident is not None:
            on_device = torch.from_numpy(rows).to(self.device)
            return Pictures(*(x[on_device] for x in self.resident))
        fresh = np.array([row for row in dict.fromkeys(rows.tolist()) if row not in self.kept], np.int64)
        if len(self.kept) + len(fresh) > KEPT_BYTES // (9 * self.width * self.height):
            return self._prepare(rows)
        if len(fresh):
            made = self._prepare(fresh)
            self.kept |= {int(row): Pictures(*(x[k] for x in made)) for k, row in enumerate(fresh)}
        return Pictures(*(torch.stack(parts) for parts in zip(*(self.kept[row] for row in rows.tolist()))))

    def batch(self, rows: np.ndarray) -> Batch:
        """The frames of `rows` on the device."""
        on_device = torch.from_numpy(rows).to(self.device)
        frames, behind, head, alpha, sure = (x.float() for x in self.pictures(rows))
        return Batch(frames / 255, behind / 255, head, alpha / 255, sure, self.landmarks[on_device], self.poses[on_device])


def sampling_weights(landmarks: np.ndarray) -> np.ndarray:
    """Chance (T,) of each frame to be drawn: up to four times more for open mouths and closed eyes."""
    curves = np.concatenate([lip_opening(landmarks)[:, None], eye_opening(landmarks)], 1).astype(float)
    spread = np.maximum(curves.std(0), 1e-6)
    chance = 1 + np.abs((curves - np.median(curves, 0)) / spread).max(1).clip(0, 3)
    return chance / chance.sum()
