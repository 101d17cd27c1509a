"""Rendering of a head."""

from collections.abc import Iterator
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from shared.gaze import GAZE
from shared.torso_motion import AT_REST, SIMILARITY
from stage2_gaussian.head import Head
from stage2_gaussian.rasterize import Projected, blend, project_splats, rasterize

GRAPHS = 8  # CUDA graphs kept for one head

_graphs: "WeakKeyDictionary[Head, dict[tuple, ProjectionGraph]]" = WeakKeyDictionary()


def render_head(head: Head, landmarks: Tensor, poses: Tensor, intrinsics: tuple[float, ...], width: int,
                height: int, torso: Tensor | None = None, gaze: Tensor | None = None) -> Tensor:
    """landmarks (B, 68, 3) metres, poses (B, 4, 4), intrinsics (fx, fy, cx, cy) pixels -> (B, H, W, 4) float.

    `torso` (B, 4) is the torso motion, which moves the ends of long hair; without it they move with the head. `gaze` (B, 2) is
    where the irises are, eye widths; without it, and where it is NaN, where they usually are. RGBA premultiplied by
    alpha, on the head's device, differentiable when gradients are on. On CUDA, the Gaussians of a head that is not being trained
    are deformed and projected by a CUDA graph, kept per batch size and camera.
    """
    device = head.positions.device
    landmarks, poses = landmarks.to(device), poses.to(device)
    torso = None if head.falling is None or torso is None else torso[:, :SIMILARITY].to(device)
    gaze = None if head.blend.gaze is None or gaze is None else gaze.to(device)
    if device.type == "cuda" and not head.positions.requires_grad:
        camera = tuple(float(value) for value in intrinsics)
        graph = _graph(head, len(poses), camera, width, height, torso is not None, gaze is not None)
        rgb, alpha = blend(graph(landmarks, poses, torso, gaze), width, height)
    else:
        gaussians = head(landmarks, poses, torso, gaze)
        rgb, alpha = rasterize(**gaussians._asdict(), intrinsics=intrinsics, width=width, height=height)
    return torch.cat([rgb, alpha], -1)


class ProjectionGraph:
    """Deformation and projection of a fixed number of frames as one CUDA graph: some sixty small kernels in one launch.

    Holds no reference to the head but `positions`, by which a graph of a head that has been pruned since is recognised.
    """

    def __init__(self, head: Head, count: int, intrinsics: tuple[float, ...], width: int, height: int,
                 with_torso: bool, with_gaze: bool) -> None:
        device = head.positions.device
        self.positions = head.positions
        self.landmarks = head.code.centres.expand(count, -1, -1).clone()
        self.poses = torch.eye(4, device=device).expand(count, 4, 4).clone()
        self.poses[:, 2, 3] = 1.0
        self.torso = torch.tensor([AT_REST], device=device).repeat(count, 1) if with_torso else None
        self.gaze = torch.zeros(count, GAZE, device=device) if with_gaze else None

        def project() -> Projected:
            gaussians = head(self.landmarks, self.poses, self.torso, self.gaze)._asdict()
            return project_splats(**gaussians, intrinsics=intrinsics, width=width, height=height)

        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.no_grad(), torch.cuda.stream(side):
            for _ in range(3):  # warm up: no kernel may be built or workspace allocated while capturing
                project()
        torch.cuda.current_stream(device).wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.projected = project()

    def __call__(self, landmarks: Tensor, poses: Tensor, torso: Tensor | None = None, gaze: Tensor | None = None) -> Projected:
        """landmarks (B, 68, 3), poses (B, 4, 4), torso motion (B, 4), gaze (B, 2) -> projected Gaussians, overwritten by the next
        call."""
        self.landmarks.copy_(landmarks)
        self.poses.copy_(poses)
        if self.torso is not None and torso is not None:
            self.torso.copy_(torso)
        if self.gaze is not None and gaze is not None:
            self.gaze.copy_(gaze)
        self.graph.replay()
        return self.projected


def _graph(head: Head, count: int, intrinsics: tuple[float, ...], width: int, height: int, with_torso: bool,
           with_gaze: bool) -> ProjectionGraph:
    """The graph of this head for this batch size and camera, captured on first use; of more than GRAPHS the oldest goes."""
    graphs = _graphs.setdefault(head, {})
    key = (count, intrinsics, width, height, with_torso, with_gaze)
    if key in graphs and graphs[key].positions is not head.positions:
        graphs.clear()
    if key not in graphs:
        if len(graphs) >= GRAPHS:
            graphs.pop(next(iter(graphs)))
        graphs[key] = ProjectionGraph(head, *key)
    return graphs[key]


@torch.no_grad()
def render_sequence(head: Head, landmarks: Tensor, poses: Tensor, intrinsics: tuple[float, ...],
                    width: int, height: int, batch: int = 16, torso: Tensor | None = None,
                    gaze: Tensor | None = None) -> Iterator[Tensor]:
    """As `render_head` for T frames, yielded as batches (≤ batch, H, W, 4)."""
    for start in range(0, len(landmarks), batch):
        rows = slice(start, start + batch)
        yield render_head(head, landmarks[rows], poses[rows], intrinsics, width, height,
                          *(None if driven is None else driven[rows] for driven in (torso, gaze)))
