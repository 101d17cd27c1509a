"""From a trained head to pictures."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from shared.checkpoint import load_checkpoint, load_module, save_checkpoint
from shared.config import shown
from shared.errors import TalkheadError
from shared.landmarks import N_LANDMARKS
from stage2_gaussian.blendshapes import GROUPS
from stage2_gaussian.head import Head
from stage2_gaussian.rasterize import Projected, blend, project_splats, rasterize

FORMAT = "gaussian-head-3"
SINGLE = ("positions", "code.centres", "code.log_scales", "code.rotations")  # kept in single precision
GRAPHS = 8  # CUDA graphs kept for one head


def save_head(path: Path, head: Head, meta: dict) -> None:
    """Write a head atomically: places in single precision, the rest in half. `meta` (JSON-able) is kept beside it.

    docs/formats.md says byte by byte what the file holds.
    """
    tensors = {**head.state_dict(), "blend.basis": head.blend.local_basis()}
    tensors.pop("blend.masks", None)
    packed = {name: tensor if name in SINGLE else tensor.half() for name, tensor in tensors.items()}
    save_checkpoint(path, packed, {**meta, "format": FORMAT})


def load_head(path: Path | str, device: torch.device | str) -> Head:
    """Read a head written by `save_head` onto `device`. Raises TalkheadError for any other file."""
    tensors, meta = load_checkpoint(path)
    if meta.get("format") != FORMAT:
        raise TalkheadError(f"{path}: expected a {FORMAT} checkpoint, found {shown(meta.get('format'))}; train stage 2 again")
    dimensions = {"positions": 2, "blend.basis": 3, "code.centres": 2, "blend.networks.0.0.weight": 2, "shading.basis": 3}
    for name, count in dimensions.items():
        if name not in tensors or tensors[name].ndim != count:
            raise TalkheadError(f"{path} is damaged or of another version: it should hold the tensor {name!r} of {count} "
                                "dimensions")
    count, (rank, moving, _) = len(tensors["positions"]), tensors["blend.basis"].shape
    centres = tensors["code.centres"].float()
    if rank < len(GROUPS) or not 1 <= moving <= count or centres.shape != (N_LANDMARKS, 3):
        raise TalkheadError(f"{path} is damaged: {count} splats, {moving} that move by {rank} coefficients and {len(centres)} "
                            "landmarks do not go together")
    head = load_module(lambda: Head(centres, torch.zeros(count, 3), torch.ones(count), torch.zeros(count, 3), moving=moving,
                                    rank=rank, hidden=len(tensors["blend.networks.0.0.weight"]),
                                    pose_rank=len(tensors["shading.basis"])), tensors, path)
    return head.to(device).eval().requires_grad_(False)


def render_head(head: Head, landmarks: Tensor, poses: Tensor, intrinsics: tuple[float, ...], width: int,
                height: int) -> Tensor:
    """landmarks (B, 68, 3) metres, poses (B, 4, 4), intrinsics (fx, fy, cx, cy) pixels -> (B, H, W, 4) float.

    RGBA premultiplied by alpha, on the head's device, differentiable when gradients are on. On CUDA, a head that is not
    being trained is deformed and projected by a CUDA graph, kept for each number of frames and camera.
    """
    device = head.positions.device
    landmarks, poses = landmarks.to(device), poses.to(device)
    if device.type == "cuda" and not head.positions.requires_grad:
        camera = tuple(float(value) for value in intrinsics)
        rgb, alpha = blend(_graph(head, len(poses), camera, width, height)(landmarks, poses), width, height)
    else:
        splats = head(landmarks, poses)
        rgb, alpha = rasterize(**splats._asdict(), intrinsics=intrinsics, width=width, height=height)
    return torch.cat([rgb, alpha], -1)


class ProjectionGraph:
    """Deformation and projection of a fixed number of frames as one CUDA graph: some sixty small kernels at one launch."""

    def __init__(self, head: Head, count: int, intrinsics: tuple[float, ...], width: int, height: int) -> None:
        device = head.positions.device
        self.landmarks = head.code.centres.expand(count, -1, -1).clone()
        self.poses = torch.eye(4, device=device).expand(count, 4, 4).clone()
        self.poses[:, 2, 3] = 1.0

        def project() -> Projected:
            splats = head(self.landmarks, self.poses)._asdict()
            return project_splats(**splats, intrinsics=intrinsics, width=width, height=height)

        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.no_grad(), torch.cuda.stream(side):
            for _ in range(3):  # warm up: no kernel may be built or workspace allocated while capturing
                project()
        torch.cuda.current_stream(device).wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self.graph):
            self.splats = project()

    def __call__(self, landmarks: Tensor, poses: Tensor) -> Projected:
        """landmarks (B, 68, 3), poses (B, 4, 4) -> splats that are valid until the next call."""
        self.landmarks.copy_(landmarks)
        self.poses.copy_(poses)
        self.graph.replay()
        return self.splats


def _graph(head: Head, count: int, intrinsics: tuple[float, ...], width: int, height: int) -> ProjectionGraph:
    """The graph of this head for this batch and camera, captured on first use; the oldest of many is dropped."""
    key = (count, intrinsics, width, height)
    if key not in head.graphs:
        if len(head.graphs) >= GRAPHS:
            head.graphs.pop(next(iter(head.graphs)))
        head.graphs[key] = ProjectionGraph(head, *key)
    return head.graphs[key]


@torch.no_grad()
def render_sequence(head: Head, landmarks: Tensor, poses: Tensor, intrinsics: tuple[float, ...],
                    width: int, height: int, batch: int = 16) -> Iterator[Tensor]:
    """As `render_head` for T frames, yielded as batches (≤ batch, H, W, 4)."""
    for start in range(0, len(landmarks), batch):
        rows = slice(start, start + batch)
        yield render_head(head, landmarks[rows], poses[rows], intrinsics, width, height)
