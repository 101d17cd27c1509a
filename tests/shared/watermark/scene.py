"""A moving scene to mark: something like a face before something like a wall, with camera noise."""

import cv2
import numpy as np


def scene(count: int, width: int = 192, height: int = 160, seed: int = 0) -> np.ndarray:
    """uint8 (count, height, width, 3)."""
    rng = np.random.default_rng(seed)
    wall = cv2.GaussianBlur(rng.normal(size=(height, width, 3)), (0, 0), 12) * 300 + 130
    skin = cv2.GaussianBlur(rng.normal(size=(height, width, 3)), (0, 0), 1.5) * 40 + [190, 150, 130]
    frames = []
    for t in range(count):
        x, y = width / 2 + 5 * np.sin(t / 11), height / 2 + 3 * np.cos(t / 7)
        face = np.zeros((height, width), np.float64)
        cv2.ellipse(face, ((x, y), (width / 3, height / 2), 0), 1.0, -1)
        cv2.ellipse(face, ((x, y + 20), (24, 6 + 5 * np.sin(t / 2)), 0), 0.3, -1)
        face = cv2.GaussianBlur(face, (0, 0), 1)[..., None]
        frames.append(face * skin + (1 - face) * wall + rng.normal(scale=1.5, size=(height, width, 3)))
    return np.clip(frames, 0, 255).astype(np.uint8)
