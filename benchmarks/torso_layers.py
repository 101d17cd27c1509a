"""The stored torso of the motion track against the network that drew it, in finished frames.

    python benchmarks/torso_layers.py me.avatar me --frames 40 --picture pairs.png

Frames spread over the track, each with a tracked expression of the clip's held-out frames, which the stored torso has not seen.
"""

from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F

from shared.avatar import Avatar
from shared.clip import Clip
from shared.media.video_io import write_png
from shared.metrics import decibel
from talkhead.motion import MotionTrack
from talkhead.synthesis import Renderer, to_uint8

BAND = 1 / 48  # half-width of the band along the head's outline, in picture widths


def compare(avatar: Avatar, clip: Clip, frames: int, device: str) -> tuple[dict[str, float], list[np.ndarray]]:
    """-> figures, and for the three worst frames network, stored and their difference times 8, side by side."""
    renderer, motion = Renderer(avatar, device), MotionTrack(avatar)
    if renderer.layers is None:
        raise click.ClickException(f"{avatar.root} has no stored torso; run `talkhead torso layers {avatar.root}`")
    rows = np.linspace(0, len(motion.poses) - 1, frames).round().astype(int)
    held = np.concatenate([clip.split(name) for name in clip.held_out(())])
    spoken = clip.load_landmarks()[np.random.default_rng(0).choice(held, frames)]
    full, band, largest, pairs = [], [], [], []
    for landmarks, row in zip(spoken, rows):
        now = motion.at(int(row), int(row) + 1)
        head = renderer.head_rgba(landmarks[None], now.poses, now.torso)
        network = (renderer.compose(head, now.poses, now.torso) * 255).round()
        stored = renderer.pictures(head, *now).float()
        error = ((network - stored) / 255).square().mean(-1)
        alpha, reach = head[..., 3][:, None], round(BAND * renderer.info.width)
        near = F.max_pool2d(alpha, 2 * reach + 1, 1, reach) + F.max_pool2d(-alpha, 2 * reach + 1, 1, reach) > 0.5
        full.append(float(decibel(error.mean())))
        band.append(float(decibel(error[near[:, 0]].mean())))
        largest.append(float((network - stored).abs().max()))
        strip = [network, stored, 127 + 8 * (stored - network)]
        pairs.append((full[-1], to_uint8(torch.cat(strip, 2)[0] / 255)))
    worst = [picture for _, picture in sorted(pairs, key=lambda pair: pair[0])[:3]]
    return {"frames": frames, "full frame, least dB": min(full), "mean dB": float(np.mean(full)),
            "band along the head, least dB": min(band), "largest difference, grey levels": max(largest),
            "file, MB": avatar.layers.stat().st_size / 1e6, "track, frames": len(motion.poses)}, worst


@click.command(help=__doc__)
@click.argument("avatar", type=click.Path(path_type=Path))
@click.argument("clip", type=click.Path(path_type=Path))
@click.option("--frames", default=40, show_default=True)
@click.option("--picture", type=click.Path(path_type=Path), help="PNG of the three worst frames.")
@click.option("--device", default="auto", show_default=True)
def main(avatar: Path, clip: Path, frames: int, picture: Path | None, device: str) -> None:
    figures, worst = compare(Avatar(avatar), Clip(clip), frames, device)
    for name, value in figures.items():
        print(f"{name:34s} {value:8.2f}")
    if picture is not None:
        write_png(picture, np.concatenate(worst))


if __name__ == "__main__":
    main()
