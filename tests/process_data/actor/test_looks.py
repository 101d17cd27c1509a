"""Looks of the actor: the default changes nothing, and the truth of hair, layers and motion agrees with the pictures."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from process_data.actor.actor import (
    ActorFrame,
    actor_gaze,
    actor_landmarks,
    actor_motion,
    before,
    default_intrinsics,
    make_actor,
    make_actor_clip,
    make_head,
    make_tubes,
    reference_pose,
    render_actor,
    render_actor_layers,
    tube_vertices,
)
from process_data.actor.look import LOOKS, PLAIN, Look, person
from process_data.actor.motion import exposure_gain, eye_turns, hand_shift
from process_data.actor.tubes import BEHIND, add_tubes
from shared.camera import euler_degrees, pose_matrix, project, rotation_from_rotvec
from shared.clip import HEAD, TORSO
from shared.errors import TalkheadError
from shared.landmarks import EYE_LEFT, EYE_RIGHT
from shared.media.video_io import read_gray_video

SIZE = 128
# of seed 0 at 96², before there were looks: mean colours of 3 × 3 tiles, and pixels of each label
TILES_BEFORE = [[[124.632, 141.844, 146.972], [126.424, 117.279, 115.115], [95.483, 112.247, 115.693]],
                [[126.32, 138.329, 136.1], [187.091, 140.798, 120.482], [95.842, 100.049, 113.626]],
                [[74.179, 85.329, 102.199], [152.576, 142.738, 148.384], [63.313, 74.338, 96.189]]]
LABELS_BEFORE = [5577, 1909, 353, 1377, 0]
TURNED = pose_matrix(rotation_from_rotvec(np.radians([0, 25, 0])) @ reference_pose()[:3, :3], reference_pose()[:3, 3])


@pytest.fixture(scope="module")
def face():
    return actor_landmarks("train", 0)[1][:1]


def draw(face, look: Look, pose=None, size: int = SIZE, number: int = 0) -> ActorFrame:
    pose = reference_pose() if pose is None else pose
    return next(render_actor_layers(face, pose[None], np.array([[0, 0, 0, 1]], np.float32), size=size, look=look,
                                    numbers=np.array([number])))


def slow_tubes(screen, depth, radius, segments, focal, height, width):
    """Every pixel against every segment, with the ball around the point of its axis that is nearest on the screen."""
    ids, nearest = np.full((height, width), -1), np.zeros((height, width))
    rows, columns = np.mgrid[:height, :width] + 0.5
    for s, (a, b) in enumerate(segments):
        d = screen[b] - screen[a]
        t = np.clip(((columns - screen[a, 0]) * d[0] + (rows - screen[a, 1]) * d[1]) / (d @ d), 0, 1)
        gap = (columns - screen[a, 0] - t * d[0]) ** 2 + (rows - screen[a, 1] - t * d[1]) ** 2
        rest = ((1 - t) * radius[a] + t * radius[b]) ** 2 - gap
        z = 1 / ((1 - t) / depth[a] + t / depth[b])
        inverse = np.where(rest >= 0, 1 / (z - z * np.sqrt(np.maximum(rest, 0)) / focal), 0)
        ids[inverse > nearest] = s
        nearest = np.maximum(nearest, inverse)
    return ids, nearest


def test_tubes_equal_slow_reference():
    rng = np.random.default_rng(0)
    screen, depth, radius = rng.uniform(-5, 30, (24, 2)), rng.uniform(0.5, 2, 24), rng.uniform(0.2, 3, 24)
    screen[1, 1] = screen[0, 1]
    segments = np.arange(24, dtype=np.int32).reshape(12, 2)
    ids, inverse = np.full((22, 26), -1, np.int32), np.zeros((22, 26))
    add_tubes(screen, depth, radius, segments, 40.0, 0, ids, inverse)
    expected_ids, expected = slow_tubes(screen, depth, radius, segments, 40.0, 22, 26)
    assert (expected_ids >= 0).sum() > 100
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(inverse, expected, rtol=1e-9)


def test_turns_and_nods_reach_their_amplitude():
    poses, _ = actor_motion(250, SIZE, 3, Look(turn=30, nod=15))
    angles = euler_degrees(poses[:, :3, :3])
    assert 29.5 < np.abs(angles[:, 0]).max() <= 30.001 and 14.5 < np.abs(angles[:, 1]).max() <= 15.001
    assert 60 < 25 * np.abs(np.diff(angles[:, 0])).max() < 250, "fast, but continuous: degrees a second"


def test_hair_moves_with_the_head_at_the_root_and_with_the_torso_at_the_tip(face):
    look = Look(hair="long")
    head, tubes = make_head(0, look), make_tubes(0, look)
    torso = np.array([3.0, 2.0, 0.03, 1.01])
    intrinsics = default_intrinsics(SIZE)
    moved = tube_vertices(tubes, head, face[0], TURNED, torso, intrinsics, SIZE)
    points = tubes.vertices(head, head.vertices(face[0].astype(float)))
    of_head = points @ TURNED[:3, :3].T.astype(float) + TURNED[:3, 3]
    of_torso = tube_vertices(replace(tubes, follow=np.ones(len(points))), head, face[0], TURNED, torso, intrinsics, SIZE)
    first = np.concatenate([[0], np.flatnonzero(np.diff(tubes.strand)) + 1])
    last = np.concatenate([first[1:] - 1, [len(points) - 1]])
    np.testing.assert_allclose(moved[first], of_head[first], atol=1e-9)
    low = last[tubes.points[last, 1] < -0.19]
    assert len(low) > 1000
    np.testing.assert_allclose(moved[low], of_torso[low], atol=1e-9)
    assert np.linalg.norm(of_head[low] - of_torso[low], axis=1).min() > 0.002
    between = (tubes.follow > 0.05) & (tubes.follow < 0.95)
    assert between.sum() > 1000
    assert np.linalg.norm(np.diff(moved, axis=0), axis=1)[np.diff(tubes.strand) == 0].max() < 0.04, "no strand tears"


def test_a_beard_moves_with_the_skin(face):
    look = Look(beard=True)
    head, tubes = make_head(0, look), make_tubes(0, look)
    lowered = head.neutral.copy()
    lowered[4:13, 1] -= 0.01  # the jaw's outline
    shift = tubes.vertices(head, head.vertices(lowered)) - tubes.vertices(head, head.vertices(head.neutral))
    chin = np.linalg.norm(tubes.points - head.neutral[8], axis=1) < 0.012
    lip = (tubes.points[:, 1] > -0.066) & (np.abs(tubes.points[:, 0]) < 0.02)
    assert chin.sum() > 100 and lip.sum() > 100
    assert shift[chin, 1].max() < -0.007 and np.abs(shift[lip]).max() < 0.002


@pytest.mark.parametrize("name", LOOKS)
def test_every_look_agrees_with_its_truth(face, name):
    look = replace(LOOKS[name], dark_skin=False)  # whose texture takes seconds to paint
    for pose, number in ((reference_pose(), 0), (TURNED, 25)):
        frame = draw(face, look, pose, number=number)
        assert set(np.unique(frame.labels)) <= {0, 1, 2, 3, 4}
        error = np.abs(before(frame.person, frame.alpha, frame.background).astype(int) - frame.picture)
        assert (error <= 2).mean() > 0.999 and error.max() <= 4, "person over background"
        uncovered = frame.alpha == 0
        np.testing.assert_allclose(frame.picture[uncovered].astype(int), frame.background[uncovered], atol=1)
        assert (frame.labels[uncovered] == 0).all() and (frame.labels[frame.alpha == 255] > 0).all()
        assert (frame.head_alpha <= frame.alpha).all()
        assert (frame.head <= frame.person + 1e-6).all()
        assert (np.isin(frame.labels[frame.head_alpha > 140], (3, 4))).all()


def test_hair_has_soft_edges_and_falls_over_the_torso(face):
    plain, long = draw(face, PLAIN), draw(face, Look(hair="long"))
    outline = binary_dilation(long.labels == 0) & (long.labels > 0)
    outline[: SIZE // 5] = False
    soft = (long.alpha > 0) & (long.alpha < 255)
    assert soft[outline].mean() > 0.3
    levels = np.unique(long.alpha[soft])
    assert len(levels) >= 12, "sixteen samples a pixel"
    assert ((long.labels == HEAD) & (plain.labels == TORSO)).sum() > 200
    layer = make_tubes(0, Look(hair="long")).layer
    assert 0.2 < (layer == BEHIND).mean() < 0.8


def test_the_knot_the_bare_shoulders_and_the_dark_room_are_seen(face):
    plain = draw(face, PLAIN)
    bun = draw(face, Look(bun=True))
    above = (bun.labels == HEAD) & (plain.labels == 0)
    assert above[: SIZE // 4].sum() > 60
    bare = draw(face, Look(bare_shoulders=True, dark_room=True))
    shoulders = bare.picture[int(0.88 * SIZE), int(0.25 * SIZE)].astype(int)
    cheek = bare.picture[int(0.48 * SIZE), int(0.4 * SIZE)].astype(int)
    assert np.abs(shoulders - cheek).max() < 60 and shoulders[0] > shoulders[2] + 20
    np.testing.assert_array_equal(bare.labels[int(0.88 * SIZE), [20, 108]], TORSO)
    assert bare.background.mean() < 0.5 * plain.background.mean()


def test_dark_skin_is_skin_and_hair_only():
    plain, dark = person(1, PLAIN), person(1, Look(dark_skin=True))
    assert max(dark.skin) < 0.4 and max(dark.hair) < 0.1
    assert replace(dark, skin=plain.skin, hair=plain.hair) == plain


def test_hand_and_exposure_pass(face):
    numbers = np.arange(300)
    gain = exposure_gain(numbers, 0, Look(exposure=0.25))
    assert 0.75 <= gain.min() < 0.9 and 1.1 < gain.max() <= 1.25 and np.abs(np.diff(gain)).max() < 0.05
    raised = np.linalg.norm(hand_shift(numbers, 0), axis=1)
    number = int(raised[:50].argmin())
    plain, hand = draw(face, PLAIN), draw(face, Look(hand=True), number=number)
    assert ((hand.labels == TORSO) & (plain.labels != TORSO)).sum() > 0.01 * SIZE**2
    far = draw(face, Look(hand=True), number=int(raised[:120].argmax()))
    assert (far.labels != plain.labels).mean() < 0.01


def test_a_look_writes_its_truth(tmp_path):
    look = Look(hair="braids", bare_shoulders=True)
    truth = make_actor(tmp_path / "film", size=64, seconds=0.08, look=look, quiet=True)
    frames = list(render_actor_layers(truth.landmarks, truth.poses, truth.torso_motion, size=64, look=look))
    for name in ("labels", "alpha", "head_alpha"):
        for frame, kept in zip(frames, read_gray_video(truth.root / f"{name}.mkv"), strict=True):
            np.testing.assert_array_equal(getattr(frame, name), kept)
    clip = make_actor_clip(tmp_path / "clip", size=64, seconds=0.08, look=look)
    np.testing.assert_array_equal(clip.read_alpha(np.array([1]))[0], frames[1].alpha)
    assert not make_actor_clip(tmp_path / "plain", size=64, seconds=0.08).alpha.exists()


def test_wrong_looks_are_refused():
    with pytest.raises(TalkheadError, match="one of short, long, curly, braids; found 'afro'"):
        Look(hair="afro")
    with pytest.raises(TalkheadError, match="turn should be from 0 to 45; found 90"):
        Look(turn=90)


def test_the_default_look_is_the_actor_of_before(face):
    torso = np.array([[2, 1, 0.01, 1.01]], np.float32)
    picture, labels = next(render_actor(face, reference_pose()[None], torso, size=96))
    again, same = next(render_actor(face, reference_pose()[None], torso, size=96, look=Look()))
    np.testing.assert_array_equal(picture, again)
    np.testing.assert_array_equal(labels, same)
    tiles = picture.reshape(3, 32, 3, 32, 3).mean((1, 3))
    np.testing.assert_allclose(tiles, TILES_BEFORE, atol=0.02)  # other processors round a level elsewhere
    np.testing.assert_allclose(np.bincount(labels.ravel(), minlength=5), LABELS_BEFORE, atol=2)
    for made, expected in zip(actor_motion(40, 96, 1), actor_motion(40, 96, 1, Look(hair="long"))):
        np.testing.assert_array_equal(made, expected)


def test_irises_are_where_the_true_gaze_says():
    look, count, size = Look(glances=20), 200, 256
    turns = eye_turns(np.arange(count), 0, look)
    assert np.abs(np.degrees(turns)).max(0)[0] > 12 and not eye_turns(np.arange(count), 0, PLAIN).any()
    numbers = np.array([turns[:, 0].argmin(), turns[:, 0].argmax()])
    shape, pose = actor_landmarks("train")[1][:1], reference_pose()[None]
    camera = default_intrinsics(size)
    true = actor_gaze(*(np.repeat(x, count, axis=0) for x in (shape, pose)), camera, 0, look)[numbers, 0]
    pixels = project(shape[0], pose[0], camera)
    drawn = render_actor(*(np.repeat(x, 2, axis=0) for x in (shape, pose, [[0, 0, 0, 1]])), size=size, look=look, numbers=numbers)
    found = []
    for picture, _ in drawn:
        places = []
        for eye in (EYE_RIGHT, EYE_LEFT):
            (left, top), (right, bottom) = np.ceil(pixels[eye].min(0)).astype(int), np.floor(pixels[eye].max(0)).astype(int)
            dark = (picture[top + 1 : bottom, left + 1 : right].mean(-1) < 90).sum(0)
            middle = left + 1.5 + (dark * np.arange(len(dark))).sum() / dark.sum() - pixels[[eye[0], eye[3]], 0].mean()
            places.append(middle / (pixels[eye[3], 0] - pixels[eye[0], 0]))
        found.append(np.mean(places))
    assert true[1] - true[0] > 0.08
    assert found[1] - found[0] == pytest.approx(true[1] - true[0], rel=0.25)
