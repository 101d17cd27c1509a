"""From a trained head to pictures."""

from collections.abc import Iterator

import torch
from torch import Tensor

from stage2_gaussian.head import Head
from stage2_gaussian.rasterize import Projected, blend, project_splats, rasterize

GRAPHS = 8  # CUDA graphs kept for one head


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
