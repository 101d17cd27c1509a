"""The contact sheet of the actor's looks: python -m tools.actor_looks docs/images/actor_looks.jpg

Each example look on a person of its own: looking ahead, and turned far to one side.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from process_data.actor.actor import actor_landmarks, actor_motion, render_actor
from process_data.actor.look import LOOKS
from shared.camera import euler_degrees

SIZE, FRAMES, COLUMNS = 256, 200, 4  # pixels, frames to choose from, looks in a row
QUALITY = 82


def main(sheet_file: Path, names: list[str]) -> None:
    pairs = []
    for name in names:
        seed, look = list(LOOKS).index(name), LOOKS[name]
        landmarks = actor_landmarks("train", seed)[1][:FRAMES]
        poses, torso = actor_motion(FRAMES, SIZE, seed, look)
        yaw, pitch, _ = np.abs(euler_degrees(poses[:, :3, :3])).T
        ahead = (yaw + pitch)[10:40].argmin() + 10  # the hand passes within the first two seconds
        shown = np.array([ahead, yaw.argmax()])
        frames = render_actor(landmarks[shown], poses[shown], torso[shown], size=SIZE, seed=seed, look=look, numbers=shown)
        pairs.append(np.concatenate([picture for picture, _ in frames], 1))
    blank = np.zeros_like(pairs[0])
    rows = [pairs[k : k + COLUMNS] for k in range(0, len(pairs), COLUMNS)]
    sheet = np.concatenate([np.concatenate(row + [blank] * (min(len(pairs), COLUMNS) - len(row)), 1) for row in rows], 0)
    Image.fromarray(sheet).save(sheet_file, quality=QUALITY)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(LOOKS))
