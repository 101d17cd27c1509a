"""Training data of the head: frames, backdrops, alpha mattes, landmarks, poses, emphasis boxes and sampling probabilities."""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.camera import project
from shared.clip import BACKGROUND, HEAD, MOUTH, Clip
from shared.errors import TalkheadError
from shared.landmarks import EYE_LEFT, EYE_RIGHT, LIPS, eye_opening, lip_opening
from shared.torso_motion import SIMILARITY

CHUNK = 64  # frames prepared at once for the GPU
READERS = 4  # such chunks read at once
KEPT_BYTES = 1 << 30  # of prepared frames kept in host memory where they are not resident on a GPU
BYTES_PER_PIXEL, RECOLORABLE = 9, 4  # of `FrameTensors`: two RGB pictures and three masks; and of its last two fields
WINDOW_MARGIN = 1 / 24  # room around the head, in picture widths
BAND = 1 / 128  # half-width, in picture widths, of the band around the head's outline where labels are not trusted
WISPS = 1 / 64  # picture widths that loose hair reaches beyond the head's label; further out mattes may be haze
CONTRAST = 0.02  # squared colour distance of head and plate above which alpha can be estimated from colour
PIXEL_NOISE = 2 / 255  # standard deviation of a frame's colours, and of a plate that was seen
LEAST_SPREAD = 8 / 255  # of the head's colours near a pixel
FILLED_SPREAD = 0.25  # standard deviation of the background where the plate was filled in
BARE = 0.1  # share of that distance below which a pixel near the body shows little but the plate
LIPS_MARGIN, EYE_MARGIN = 0.25, 0.4  # of the width of the landmarks' bounding box, added all round to emphasis boxes
RARE = 3.0  # standard deviations from the median at which an expression is sampled most often, 1 + RARE times as often


class Batch(NamedTuple):
    """Frames cropped to the head's window, float in [0, 1]."""

    frames: Tensor  # (B, H, W, 3)
    backdrop: Tensor  # (B, H, W, 3) what the head is composited over: see `make_backdrop`
    head: Tensor  # (B, H, W) 1 on head and mouth interior
    alpha: Tensor  # (B, H, W) the head's opacity
    alpha_valid: Tensor  # (B, H, W) 1 where alpha is known
    landmarks: Tensor  # (B, 68, 3)
    poses: Tensor  # (B, 4, 4)
    torso: Tensor  # (B, 4) torso motion
    gaze: Tensor  # (B, 2) eye widths; NaN in a clip without


class FrameTensors(NamedTuple):
    """The pictures of a `Batch` as they are stored, uint8; the last two, which training needs, are empty in other datasets."""

    frames: Tensor  # (B, H, W, 3)
    backdrop: Tensor  # (B, H, W, 3)
    head: Tensor  # (B, H, W) 0 or 1
    alpha: Tensor  # (B, H, W)
    alpha_valid: Tensor  # (B, H, W) 0 or 1
    clean: Tensor  # (B, H, W, 3) the head alone where `open_air` is 1: its colour times alpha, see `foreground_colors`
    open_air: Tensor  # (B, H, W) 0 or 1: head and background, away from neck and torso; anything may stand behind the head


class Matte(NamedTuple):
    """The head's opacity in B frames."""

    alpha: Tensor  # (B, H, W) float
    valid: Tensor  # (B, H, W) float, 1 where alpha is known
    edge: Tensor  # (B, H, W) bool: labelled background, but hair may reach there
    air: Tensor  # (B, H, W) bool: the soft outline away from neck and torso
    sure: Tensor  # (B, H, W) bool: inside the outline, where nothing but the head is seen


def box_mask(landmarks: Tensor, poses: Tensor, intrinsics: tuple[float, ...], width: int, height: int, part: list[int],
             margin: float = LIPS_MARGIN) -> Tensor:
    """Bool (B, H, W): pixels in `bounding_box` of the same landmarks."""
    return inside(bounding_box(landmarks, poses, intrinsics, part, margin), width, height)


def bounding_box(landmarks: Tensor, poses: Tensor, intrinsics: tuple[float, ...], part: list[int],
                 margin: float) -> Tensor:
    """Bounding box of the projected landmarks `part` -> (B, 4) left, top, right, bottom in pixels.

    landmarks (B, 68, 3), poses (B, 4, 4); enlarged on every side by `margin` times its width.
    """
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


def matte(frames: Tensor, plates: Tensor, head: Tensor, background: Tensor, reach: int, wisps: int = 0,
          person: Tensor | None = None) -> Matte:
    """Soft alpha along the head's outline, so that hair does not take on the colour of the plate.

    frames and plates (B, H, W, 3) in [0, 1], head and background bool (B, H, W), reach and wisps in pixels. Within `reach` of
    the outline a pixel I is modelled as a mix of the mean head colour F nearby and the plate B: alpha = (I - B)·(F - B) /
    |F - B|²; near neck and torso only where the pixel shows little but the plate. `person` (B, H, W), the opacity of the whole
    person, replaces that estimate along the outline away from neck and torso, and up to `wisps` outside it.
    """
    reach = max(1, reach)
    plane = head.float()[:, None]
    shrunk = -_widened(-plane, reach)
    band = _widened(plane, reach) > shrunk
    clothed = (~head & ~background).float()[:, None]
    body = _widened(clothed, reach) > 0
    nearby = _averaged(torch.cat([frames.movedim(-1, 1) * shrunk, shrunk], 1), 2 * reach)
    difference = (nearby[:, :3] / nearby[:, 3:].clamp_min(1e-6)).movedim(1, -1) - plates
    contrast = difference.square().sum(-1)
    mixed = (((frames - plates) * difference).sum(-1) / contrast.clamp_min(1e-6)).clamp(0, 1)
    band, body, head_nearby = band[:, 0], body[:, 0], nearby[:, 3] > 1e-3
    bare = (frames - plates).square().sum(-1) < BARE * contrast
    estimated = band & head_nearby & (contrast > CONTRAST) & (~body | bare)
    alpha, air = torch.where(estimated, mixed, plane[:, 0]), band & ~body
    if person is not None:
        if wisps > reach:
            air = air | (background & (_widened(plane, wisps)[:, 0] > 0) & (_widened(clothed, wisps)[:, 0] == 0))
        alpha, estimated = torch.where(air, person, alpha), estimated | air
    return Matte(alpha, (estimated | ~band).float(), air & background, air, shrunk[:, 0] > 0)


def _widened(plane: Tensor, reach: int) -> Tensor:
    """Maximum of planes (B, 1, H, W) over squares that reach so many pixels to each side."""
    rows = F.max_pool2d(plane, (2 * reach + 1, 1), 1, (reach, 0))
    return F.max_pool2d(rows, (1, 2 * reach + 1), 1, (0, reach))


def _averaged(planes: Tensor, reach: int) -> Tensor:
    """Mean of planes (B, C, H, W) over squares that reach so many pixels to each side, zeros beyond the picture's edge."""
    rows = F.avg_pool2d(planes, (2 * reach + 1, 1), 1, (reach, 0))
    return F.avg_pool2d(rows, (1, 2 * reach + 1), 1, (0, reach))


def foreground_colors(frames: Tensor, plates: Tensor, alpha: Tensor, sure: Tensor, seen: Tensor, reach: int) -> Tensor:
    """The head's colour in mixed pixels, without that of the background: (B, H, W, 3) in [0, 1].

    frames and plates (B, H, W, 3) in [0, 1]; alpha (B, H, W); sure bool (B, H, W): pixels that show the head alone; seen bool
    (B, H, W): where the plate is known, elsewhere it was filled in; reach in pixels. A pixel is I = alpha·F + (1 - alpha)·B
    with noise, F and B normally distributed about the mean head colour nearby and about the plate; the most likely F is that of
    Chuang et al., "A Bayesian approach to digital matting", CVPR 2001, for known alpha, channel by channel.
    """
    plane = sure.float()[:, None]
    picture = frames.movedim(-1, 1)
    sums = _averaged(torch.cat([picture * plane, picture.square() * plane, plane], 1), 2 * reach)
    count = sums[:, 6:].clamp_min(1e-6)
    mean, square = (sums[:, k : k + 3] / count for k in (0, 3))
    spread = (square - mean.square()).clamp_min(LEAST_SPREAD**2)
    found = sums[:, 6:] > 1e-6  # elsewhere no head is near: the pixel's own colour is all there is
    mean, spread = torch.where(found, mean, picture), torch.where(found, spread, 1.0)
    share = alpha[:, None]
    behind = torch.where(seen, PIXEL_NOISE**2, FILLED_SPREAD**2)[:, None]
    left = picture - share * mean - (1 - share) * plates.movedim(-1, 1)
    variance = PIXEL_NOISE**2 + share.square() * spread + (1 - share).square() * behind
    colors = (mean + share * spread * left / variance).clamp(0, 1)
    return torch.where(share == 1, picture, colors).movedim(1, -1)


def over_colors(pictures: FrameTensors, colors: Tensor, chosen: Tensor) -> FrameTensors:
    """The frames chosen, bool (B,), with another background: their colour of uint8 (B, 3) in all open air behind the head.

    A colour that holds some of the old background, and an alpha that makes up for it, no longer match the frame then.
    """
    everywhere = colors[:, None, None].expand_as(pictures.frames)
    through = (1 - pictures.alpha.float() / 255)[..., None]
    shown = (pictures.clean + through * everywhere).round().clamp(0, 255).byte()
    air = (pictures.open_air.bool() & chosen[:, None, None])[..., None]
    return pictures._replace(frames=torch.where(air, shown, pictures.frames),
                             backdrop=torch.where(air, everywhere, pictures.backdrop))


def make_backdrop(frames: Tensor, plates: Tensor, head: Tensor, background: Tensor, open_air: Tensor, reach: int) -> Tensor:
    """The backdrop that the head is composited over, uint8 (B, H, W, 3).

    frames and plates uint8 (B, H, W, 3); head, background and open_air bool (B, H, W); reach in pixels. The frame itself
    outside the head; the plate inside it and in `open_air`, the background along its outline; but along the jaw, where
    within 2 · `reach` there is more neck and clothes than background, their mean colour, because the jaw hides those.
    """
    reach = max(1, reach)
    body = (~head & ~background).float()[:, None]
    planes = torch.cat([frames.movedim(-1, 1).float() * body, body, background.float()[:, None]], 1)
    near = _averaged(planes, 2 * reach).movedim(1, -1)
    clothed = head & (near[..., 3] > near[..., 4])
    body_color = (near[..., :3] / near[..., 3:4].clamp_min(1e-6)).round().byte()
    over_plate = torch.where((head | open_air)[..., None], plates, frames)
    return torch.where(clothed[..., None], body_color, over_plate)


def batches(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Rows (n,) in pieces of nearly equal length, at most `size`."""
    return np.array_split(rows, -(-len(rows) // size))


class HeadDataset:
    """Frames `indices` of one clip, addressed by row, cropped to the smallest window that holds the head in all of them.

    On CUDA the prepared frames are resident if they fit into half of the free memory; otherwise a batch is read from the
    clip's cache and prepared when needed, and at most KEPT_BYTES of them are kept, so that host memory does not grow with
    the clip.
    """

    def __init__(self, clip: Clip, indices: np.ndarray, device: torch.device, recolorable: bool = False) -> None:
        """`recolorable`: with what `over_colors` needs."""
        if len(indices) == 0:
            raise TalkheadError(f"{clip.root}: the train split holds no good frame")
        self.clip, self.indices, self.device, self.recolorable = clip, indices, device, recolorable
        clip.decode()
        x0, y0, x1, y1 = self._find_window()
        self.rows, self.columns = slice(y0, y1), slice(x0, x1)
        self.width, self.height = x1 - x0, y1 - y0
        fx, fy, cx, cy = clip.info.intrinsics
        self.intrinsics = (fx, fy, float(cx - x0), float(cy - y0))
        landmarks = clip.load_landmarks()[indices]
        self.landmarks = torch.from_numpy(landmarks).to(device)
        self.poses = torch.from_numpy(clip.load_poses()[indices]).to(device)
        self.torso = torch.from_numpy(clip.load_torso_motion()[indices, :SIMILARITY]).to(device)
        self.gaze = torch.from_numpy(clip.load_gaze()[indices]).to(device)
        self.plates = torch.from_numpy(clip.load_plates()[:, self.rows, self.columns]).to(device)
        if recolorable:
            self.seen = torch.from_numpy(clip.load_seen()[:, self.rows, self.columns]).to(device)
        self.shots = torch.from_numpy(clip.shot_of_frames()[indices]).to(device)
        self.boxes = torch.stack([bounding_box(self.landmarks, self.poses, self.intrinsics, part, margin)
                                  for part, margin in ((LIPS, LIPS_MARGIN), (EYE_RIGHT, EYE_MARGIN), (EYE_LEFT, EYE_MARGIN))], 1)
        self.sampling_probs = sampling_probs(landmarks)
        self.has_alpha = clip.alpha.is_file()
        self.resident: FrameTensors | None = None
        self.kept: dict[int, FrameTensors] = {}
        if device.type == "cuda" and self._bytes(len(indices)) < torch.cuda.mem_get_info(device)[0] / 2:
            self.resident = self._prepare_all()

    def __len__(self) -> int:
        return len(self.indices)

    def _bytes(self, frames: int) -> int:
        return frames * self.width * self.height * (BYTES_PER_PIXEL + self.recolorable * RECOLORABLE)

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

    def _prepare_all(self) -> FrameTensors:
        """All frames; while one chunk is prepared, the next ones are read."""
        prepared = []
        with ThreadPoolExecutor(READERS) as pool:
            for group in batches(np.arange(len(self)), READERS * CHUNK):
                chunks = batches(group, CHUNK)
                prepared += [self._prepare(rows, read) for rows, read in zip(chunks, pool.map(self._read, chunks))]
        return FrameTensors(*(torch.cat(parts) for parts in zip(*prepared)))

    def _read(self, rows: np.ndarray) -> list[np.ndarray]:
        """Frames, labels and, if there is one, the person's alpha of `rows`, cropped."""
        sources = [self.clip.read_frames, self.clip.read_labels, *([self.clip.read_alpha] if self.has_alpha else [])]
        return [np.ascontiguousarray(source(self.indices[rows])[:, self.rows, self.columns]) for source in sources]

    def _prepare(self, rows: np.ndarray, read: list[np.ndarray] | None = None) -> FrameTensors:
        read = self._read(rows) if read is None else read
        frames, labels, *person_alpha = (torch.from_numpy(x).to(self.device) for x in read)
        person = person_alpha[0].float() / 255 if person_alpha else None
        head = (labels == HEAD) | (labels == MOUTH)
        shots = self.shots[torch.from_numpy(rows).to(self.device)]
        plates = self.plates[shots]
        background, reach = labels == BACKGROUND, max(1, round(BAND * self.clip.info.width))
        pictures, empty = frames.float() / 255, plates.float() / 255
        found = matte(pictures, empty, head, background, reach, round(WISPS * self.clip.info.width), person)
        backdrop = make_backdrop(frames, plates, head, background, found.edge, reach)
        alpha, clean, open_air = (found.alpha * 255).round().byte(), frames[:, :0], frames[:, :0, :, 0]
        if self.recolorable:
            colors = foreground_colors(pictures, empty, found.alpha, found.sure, self.seen[shots], reach)
            clean = (colors * found.alpha[..., None] * 255).round().byte()
            open_air = (found.air | (background & (found.valid > 0)) | (found.sure & (found.alpha == 1))).byte()
        return FrameTensors(frames, backdrop, head.byte(), alpha, found.valid.byte(), clean, open_air)

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """`count` random rows, rare expressions more often (see `sampling_probs`)."""
        return rng.choice(len(self), count, p=self.sampling_probs)

    def frame_tensors(self, rows: np.ndarray) -> FrameTensors:
        """The pictures of `rows` on the device, uint8."""
        if self.resident is not None:
            on_device = torch.from_numpy(rows).to(self.device)
            return FrameTensors(*(x[on_device] for x in self.resident))
        fresh = np.array([row for row in dict.fromkeys(rows.tolist()) if row not in self.kept], np.int64)
        if self._bytes(len(self.kept) + len(fresh)) > KEPT_BYTES:
            return self._prepare(rows)
        if len(fresh):
            made = self._prepare(fresh)
            self.kept |= {int(row): FrameTensors(*(x[k] for x in made)) for k, row in enumerate(fresh)}
        return FrameTensors(*(torch.stack(parts) for parts in zip(*(self.kept[row] for row in rows.tolist()))))

    def batch(self, rows: np.ndarray) -> Batch:
        """The data of `rows` on the device, float."""
        on_device = torch.from_numpy(rows).to(self.device)
        frames, backdrop, head, alpha, alpha_valid = (x.float() for x in self.frame_tensors(rows)[:5])
        return Batch(frames / 255, backdrop / 255, head, alpha / 255, alpha_valid, self.landmarks[on_device],
                     self.poses[on_device], self.torso[on_device], self.gaze[on_device])


def sampling_probs(landmarks: np.ndarray) -> np.ndarray:
    """landmarks (T, 68, 3) -> (T,) probability of each frame to be sampled: up to 1 + RARE times that of a typical frame.

    It grows with the distance of mouth and eye openings from their medians.
    """
    curves = np.concatenate([lip_opening(landmarks)[:, None], eye_opening(landmarks)], 1).astype(float)
    spread = np.maximum(curves.std(0), 1e-6)
    density = 1 + np.abs((curves - np.median(curves, 0)) / spread).max(1).clip(0, RARE)
    return density / density.sum()
