"""The picture of the README, from the folder that `make demo` leaves: python tools/make_picture.py demo docs/images/demo.png

Above: the video that the avatar was made from. Middle: landmarks predicted from a sentence it never heard. Below: the
avatar speaking that sentence.
"""

import sys
from pathlib import Path

import cv2
import numpy as np

from shared.camera import pose_matrix, project
from shared.clip import Clip
from shared.landmarks import lip_opening, load_landmarks
from shared.media.video_io import read_video, write_png

COLUMNS = 6
DARK = (24, 28, 38)


def main(demo: Path, picture: Path) -> None:
    clip = Clip(demo / "clip")
    info = clip.info
    source = clip.read_frames(np.linspace(20, info.frames - 20, COLUMNS).astype(int))
    rows = load_landmarks(demo / "predicted.npy")
    opening = lip_opening(rows)
    parts = np.array_split(np.arange(10, len(rows) - 5), COLUMNS)
    # the widest and the most closed mouth by turns
    shown = [int(part[opening[part].argmax() if k % 2 else opening[part].argmin()]) for k, part in enumerate(parts)]
    frames = [frame for t, frame in enumerate(read_video(demo / "talk.mp4")) if t in shown]
    middle = clip.load_neutral()[0].mean(0)
    pose = pose_matrix(np.diag([1.0, -1.0, -1.0]), np.array([-middle[0], middle[1], 1.0]))
    close_up = (5 * info.width, 5 * info.width, info.width / 2, info.height / 2)
    drawn = []
    for t in shown:
        canvas = np.full((info.height, info.width, 3), DARK, np.uint8)
        for k, (u, v) in enumerate(project(rows[t], pose, close_up)):
            color = (255, 120, 120) if k >= 48 else (130, 200, 255)
            cv2.circle(canvas, (round(u * 16), round(v * 16)), 36, color, -1, cv2.LINE_AA, 4)
        drawn.append(canvas)
    write_png(picture, np.concatenate([np.concatenate(list(row), 1) for row in (source, drawn, frames)], 0))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
