import cv2
import numpy as np
import pytest

from benchmarks.registration import registration
from process_data.tracking.torso_motion import compose
from shared.camera import pose_matrix, project
from shared.clip import BACKGROUND, HEAD, TORSO, Clip, ClipInfo, Shot
from shared.face_check import TEMPLATE
from shared.landmarks import save_array, save_landmarks
from shared.media.video_io import GrayVideoWriter, VideoWriter

SIZE, FRAMES = 128, 24
INTRINSICS = (256.0, 256.0, 64.0, 64.0)


@pytest.fixture(scope="module")
def swaying(tmp_path_factory):
    """A clip of two shots in which torso and head sway each on its own; its motion files hold the truth."""
    clip = Clip(tmp_path_factory.mktemp("swaying"))
    rng = np.random.default_rng(0)
    cloth, skin = (cv2.GaussianBlur(rng.integers(0, 200, (SIZE, SIZE, 3)).astype(np.uint8), (0, 0), 2) for _ in range(2))
    shirt, face = np.zeros((SIZE, SIZE), np.uint8), np.zeros((SIZE, SIZE), np.uint8)
    cv2.ellipse(shirt, (64, 126), (44, 56), 0, 0, 360, 1, -1)
    cv2.circle(face, (64, 44), 22, 1, -1)
    t = np.arange(FRAMES)
    torso = np.stack([5 * np.sin(t / 3), 3 * np.cos(t / 4), 0 * t, 1 + 0 * t], -1).astype(np.float32)
    poses = pose_matrix(np.tile(np.diag([1.0, -1.0, -1.0]), (FRAMES, 1, 1)),
                        np.stack([0.016 * np.sin(t / 5), 0 * t - 0.08, 1 + 0 * t], -1))
    shape = (TEMPLATE * [1, 1, 0.02]).astype(np.float32)
    pixels = project(np.tile(shape, (FRAMES, 1, 1)), poses, INTRINSICS)
    with VideoWriter(clip.video, SIZE, SIZE, crf=4) as video, GrayVideoWriter(clip.labels, SIZE, SIZE) as marks:
        for k in range(FRAMES):
            head = np.array([*(pixels[k] - pixels[0]).mean(0), 0, 1])
            frame, labels = np.full((SIZE, SIZE, 3), 230, np.uint8), np.full((SIZE, SIZE), BACKGROUND, np.uint8)
            for picture, mask, motion, label in ((cloth, shirt, torso[k], TORSO), (skin, face, head, HEAD)):
                matrix = compose(motion, np.array([64.0, 64.0]))
                over = cv2.warpAffine(mask, matrix, (SIZE, SIZE), flags=cv2.INTER_NEAREST) > 0
                frame[over] = cv2.warpAffine(picture, matrix, (SIZE, SIZE))[over]
                labels[over] = label
            video.write(frame)
            marks.write(labels)
    save_landmarks(clip.landmarks, np.tile(shape, (FRAMES, 1, 1)))
    save_array(clip.poses, poses)
    save_array(clip.torso_motion, torso)
    clip.save_info(ClipInfo("swaying", "x", "0", SIZE, SIZE, FRAMES, INTRINSICS, (0, 0, SIZE),
                            [Shot(0, 14, "background.png"), Shot(14, FRAMES, "background_01.png")]))
    return clip, torso


def test_the_true_motion_stands_still_and_none_does_not(swaying):
    clip, torso = swaying
    save_array(clip.torso_motion, torso)
    right = registration(clip)
    save_array(clip.torso_motion, np.tile(np.float32([0, 0, 0, 1]), (FRAMES, 1)))
    wrong = registration(clip)
    assert right["torso"] < 0.4 * wrong["torso"]
    assert right["shoulders"] < 0.6 * wrong["shoulders"]
    assert right["head"] == wrong["head"] < 8  # it does not hang on the torso's motion
    assert right["torso shot 1"] < 0.5 * wrong["torso shot 1"]


def test_every_region_is_measured_for_the_clip_and_each_shot(swaying):
    clip, _ = swaying
    values = registration(clip, samples=10)
    names = ["torso", "shoulders", "head"]
    assert list(values) == names + [f"{name} shot {shot}" for shot in (0, 1) for name in names]
    assert all(np.isfinite(value) for value in values.values())
