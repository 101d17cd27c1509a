"""The rendered actor: pictures, labels and files agree with the truth that goes with them."""

import json

import numpy as np
import pytest
from scipy.ndimage import binary_erosion, map_coordinates

from process_data.actor.actor import (
    actor_landmarks,
    actor_motion,
    camera_vertices,
    default_intrinsics,
    make_actor,
    make_actor_clip,
    make_background,
    make_head,
    reference_pose,
    render_actor,
)
from process_data.detection.detector import open_detector
from shared.camera import euler_degrees, project
from shared.errors import TalkheadError
from shared.landmark_edit import apply_blink, mouth_gain
from shared.landmarks import lip_opening, load_array, load_landmarks
from shared.media.audio_io import load_audio
from shared.media.video_io import probe, read_gray_video, read_png, read_video

SIZE = 192


@pytest.fixture(scope="module")
def spoken():
    landmarks = actor_landmarks("train", 0)[1]
    poses, torso = actor_motion(len(landmarks), SIZE, 0)
    return landmarks, poses, torso


def render_one(landmarks, torso=(0, 0, 0, 1), seed=0):
    """Picture and labels of one face looking straight at the camera."""
    return next(render_actor(landmarks[None], reference_pose()[None], np.array([torso], np.float32), size=SIZE, seed=seed))


def test_landmark_vertices_project_where_the_truth_says(spoken):
    intrinsics = fx, fy, cx, cy = default_intrinsics(SIZE)
    for landmarks, pose, torso in zip(*(array[[0, 60, 200]] for array in spoken)):
        vertices = camera_vertices(make_head(0), landmarks, pose, torso, intrinsics, SIZE)[:68]
        drawn = vertices[:, :2] / vertices[:, 2:] * [fx, fy] + [cx, cy]
        np.testing.assert_allclose(drawn, project(landmarks, pose, intrinsics), atol=1e-3)


def test_motion_is_small_and_natural(spoken):
    _, poses, torso = spoken
    angles = np.abs(euler_degrees(poses[:, :3, :3])).max(axis=0)
    assert (angles < [10, 6, 4]).all() and (angles > [3, 2, 1]).all()
    assert np.abs(np.diff(poses[:, :3, 3], axis=0)).max() < 0.003
    assert 1 < np.abs(torso[:, :2]).max() < 0.02 * SIZE


def test_labels_agree_with_the_picture_and_the_landmarks(spoken):
    wide = lip_opening(spoken[0]).argmax()
    landmarks, pose, torso = (array[wide] for array in spoken)
    picture, labels = next(render_actor(landmarks[None], pose[None], torso[None], size=SIZE))
    assert set(np.unique(labels)) == {0, 1, 2, 3, 4}
    marks = project(landmarks, pose, default_intrinsics(SIZE))
    rows, columns = np.nonzero(labels == 4)
    low, high = marks[60:].min(0) - 1.5, marks[60:].max(0) + 1.5
    assert (columns + 0.5 > low[0]).all() and (columns + 0.5 < high[0]).all()
    assert (rows + 0.5 > low[1]).all() and (rows + 0.5 < high[1]).all()
    nose = marks[30].astype(int)
    assert labels[nose[1], nose[0]] == 3 and labels[SIZE - 2, SIZE // 2] == 1
    away = binary_erosion(labels == 0, iterations=2)
    np.testing.assert_array_equal(picture[away], make_background(0, SIZE)[away])
    assert not (render_one(spoken[0][0])[1] == 4).any(), "closed lips show no mouth"


def test_the_torso_moves_by_its_exact_similarity(spoken):
    dx, dy, angle, scale = 3.0, -2.0, 0.02, 1.01
    still, moved = render_one(spoken[0][0]), render_one(spoken[0][0], torso=(dx, dy, angle, scale))
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    x, y = columns - dx - SIZE / 2, rows - dy - SIZE / 2
    cosine, sine = np.cos(angle) / scale, np.sin(angle) / scale
    source = [-sine * x + cosine * y + SIZE / 2 - 0.5, cosine * x + sine * y + SIZE / 2 - 0.5]
    warped = np.stack([map_coordinates(still[0][..., k].astype(float), source, order=1) for k in range(3)], -1)
    jacket = (still[1] == 1) & (moved[1] == 1)
    jacket[: int(0.85 * SIZE)] = False
    jacket[-8:] = jacket[:, :8] = jacket[:, -8:] = False
    assert jacket.sum() > 1000
    unmoved = np.abs(still[0].astype(float) - moved[0])[jacket].mean()
    assert np.abs(warped - moved[0])[jacket].mean() < 0.5 * unmoved


def test_edited_landmarks_move_the_picture(spoken):
    landmarks = spoken[0]
    neutral, wide = landmarks[0], landmarks[lip_opening(landmarks).argmax()]
    plain, larger = render_one(wide)[1], render_one(mouth_gain(wide[None], neutral, 1.5)[0])[1]
    assert (larger == 4).sum() > 1.3 * (plain == 4).sum()
    opened, shut = render_one(neutral)[0], render_one(apply_blink(neutral[None], np.ones(1))[0])[0]
    marks = project(neutral, reference_pose(), default_intrinsics(SIZE))[37:42].mean(0).astype(int)
    window = np.s_[marks[1] - 1 : marks[1] + 1, marks[0] - 1 : marks[0] + 2]
    assert shut[window].mean() > 1.5 * opened[window].mean(), "the lid's skin covers the dark iris"


@pytest.mark.slow
def test_seeds_are_people(spoken):
    people = [render_one(spoken[0][0], seed=seed)[0].astype(int) for seed in (0, 1, 2)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(people[a] - people[b]).mean() > 5
    np.testing.assert_array_equal(people[0], render_one(spoken[0][0], seed=0)[0])


@pytest.mark.slow
def test_files_of_make_actor(tmp_path):
    truth = make_actor(tmp_path, size=96, seconds=0.6, seed=1, quiet=True)
    info = probe(tmp_path / "actor.mp4")
    assert (info.width, info.height, info.has_audio) == (96, 96, True)
    frames = list(read_video(tmp_path / "actor.mp4"))
    assert len(frames) == 15
    np.testing.assert_array_equal(load_landmarks(truth.root / "landmarks.npy"), truth.landmarks)
    np.testing.assert_array_equal(load_array(truth.root / "poses.npy", (4, 4)), truth.poses)
    np.testing.assert_array_equal(load_array(truth.root / "torso.npy", (4,)), truth.torso_motion)
    assert load_landmarks(truth.root / "neutral.npy").shape == (1, 68, 3)
    assert abs(len(load_audio(tmp_path / "actor.mp4")) - 15 * 640) <= 2048
    drawn = render_actor(truth.landmarks, truth.poses, truth.torso_motion, size=96, seed=1)
    for (picture, labels), frame, kept in zip(drawn, frames, read_gray_video(truth.root / "labels.mkv")):
        np.testing.assert_array_equal(labels, kept)
        assert np.abs(picture.astype(int) - frame).mean() < 4
    assert read_png(truth.root / "background.png").shape == (96, 96, 3)
    written = json.loads((truth.root / "truth.json").read_text())
    assert (written["frames"], written["fps"], written["intrinsics"]) == (15, 25, list(default_intrinsics(96)))
    assert not list(tmp_path.rglob("*partial*"))


def test_wrong_requests_are_refused(spoken):
    landmarks, poses, torso = spoken
    with pytest.raises(TalkheadError, match="seconds=0"):
        make_actor("unused", seconds=0)  # type: ignore[arg-type]
    with pytest.raises(TalkheadError, match="found 33"):
        next(render_actor(landmarks[:1], poses[:1], torso[:1], size=33))
    with pytest.raises(TalkheadError, match="found 2, 1 and 1"):
        next(render_actor(landmarks[:2], poses[:1], torso[:1], size=64))


def test_mediapipe_sees_the_face_and_its_lips(spoken):
    opening = lip_opening(spoken[0])
    chosen = np.unique([opening.argmax(), 0, *np.linspace(5, len(opening) - 5, 8).astype(int)])
    landmarks, poses, torso = (array[chosen] for array in spoken)
    gaps, places = [], []
    detector = open_detector()
    for picture, _ in render_actor(landmarks, poses, torso, size=256):
        detector.restart()
        marks = detector.points(picture)
        assert marks is not None, "no face found"
        gaps.append(marks[14, 1] - marks[13, 1])
        places.append(marks[[33, 263, 61, 291], :2])
    detector.close()
    assert np.corrcoef(gaps, opening[chosen])[0, 1] > 0.9
    truth = project(landmarks, poses, default_intrinsics(256))[:, [36, 45, 48, 54]]
    assert np.linalg.norm(np.array(places) - truth, axis=-1).mean() < 2.5


def test_a_clip_of_the_actor_holds_the_speech_and_faces_never_spoken(spoken, tmp_path):
    wide = mouth_gain(spoken[0][60:62], make_head(0).neutral, 2.0).astype(np.float32)
    clip = make_actor_clip(tmp_path / "clip", size=64, seconds=0.8, held_out=0.25,
                           extra={"wide": (wide, spoken[1][60:62], spoken[2][60:62])})
    assert {name: list(clip.split(name)) for name in ("train", "test", "wide")} == {
        "train": list(range(15)), "test": list(range(15, 20)), "wide": [20, 21]}
    assert clip.info.frames == 22 and clip.load_audio().shape == (22 * 640,) and not clip.load_audio()[20 * 640 :].any()
    np.testing.assert_array_equal(clip.load_landmarks(), np.concatenate([spoken[0][:20], wide]))
    picture, labels = next(render_actor(wide[1:], spoken[1][61:62], spoken[2][61:62], size=64))
    np.testing.assert_array_equal(clip.read_labels(np.array([21]))[0], labels)
    assert np.abs(clip.read_frames(np.array([21]))[0].astype(float) - picture).mean() < 3
    np.testing.assert_array_equal(clip.load_plates()[0], make_background(0, 64))
