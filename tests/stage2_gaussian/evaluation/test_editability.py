"""Faces beyond the training range: the edits, their sheet, and a trained head against the actor's own drawing of them."""

import numpy as np
import pytest
import torch

from process_data.actor.actor import Performance, actor_landmarks, actor_motion, make_actor_clip, make_head
from shared.camera import project
from shared.clip import Clip
from shared.errors import TalkheadError
from shared.image import over
from shared.landmarks import EYE_LEFT, EYE_RIGHT, INNER51, LIPS, NOSE, eye_opening, lip_opening
from shared.metrics import psnr
from stage2_gaussian.blendshapes import MARGIN
from stage2_gaussian.checkpoint import load_head
from stage2_gaussian.config import Stage2Config
from stage2_gaussian.dataset import HeadDataset, box_mask
from stage2_gaussian.evaluation.expression_sheet import (
    CAPTION,
    COLUMNS,
    EDITS,
    closed_eyes,
    half_smile,
    jaw_sideways,
    make_expression_sheet,
    starting_rows,
)
from stage2_gaussian.head import Head
from stage2_gaussian.render import render_head
from stage2_gaussian.train import split_off_validation, train

CPU = torch.device("cpu")
CONFIG = Stage2Config(splats=4000, steps=300)
SIZE, SPOKEN, COUNT = 128, 150, 3  # pixels, frames of speech, frames an edit
EYES = (EYE_RIGHT, EYE_LEFT)
# Landmarks around which the face changes, and what must be reached there: PSNR in dB of the full frame, of the boxes around
# these landmarks, and how much more that is than for the face as it was filmed. Measured: 37.5, 24.6, 3.1; 39.5, 29, 6;
# 38.6, 20.5, 2.0 (with NumPy 2 and OpenCV 4.14 38.0, 25.4, 3.3; 39.4, 28.7, 5.8; 38.1, 19.3, 1.5). Without the windows all
# three fail; without the blend, or with one four times too strong, the first and last.
GOALS = {"mouth 1.5 x": ((LIPS,), 35.5, 22, 2), "smile": ((LIPS,), 38, 26, 4), "eyes closed": (EYES, 37.6, 19, 1.1)}


def performances(frames: int) -> dict[str, Performance]:
    """The edits of GOALS, and as "… filmed" the same faces before it; wide ones are the widest of all at other poses."""
    landmarks = actor_landmarks("train")[1][:frames]
    poses, torso = actor_motion(frames, SIZE)
    opening = lip_opening(landmarks)
    typical = np.argsort(np.abs(opening - np.median(opening)))[:COUNT]
    shapes = {"typical": landmarks[typical], "widest": np.repeat(landmarks[[opening.argmax()]], COUNT, axis=0)}
    parts = {}
    for name in GOALS:
        filmed, motion = shapes[EDITS[name].start], (poses[typical], torso[typical])
        edited = EDITS[name].change(filmed, make_head(0).neutral).astype(np.float32)
        parts |= {name: (edited, *motion), f"{name} filmed": (filmed, *motion)}
    return parts


@pytest.fixture(scope="module")
def actor(tmp_path_factory) -> Clip:
    parts = performances(SPOKEN)
    return make_actor_clip(tmp_path_factory.mktemp("actor") / "clip", size=SIZE, seconds=SPOKEN / 25, held_out=0, extra=parts)


@pytest.fixture(scope="module")
def head(actor, tmp_path_factory) -> Head:
    folder = tmp_path_factory.mktemp("head")
    train(actor, folder / "head", config=CONFIG, device=CPU, state_dir=folder / "state", quiet=True)
    return load_head(folder / "head", CPU)


@pytest.mark.slow
@pytest.mark.parametrize("name", GOALS)
def test_edited_faces_look_as_the_actor_draws_them(actor, head, name):
    data, filmed = HeadDataset(actor, actor.split(name), CPU), actor.load_landmarks()[actor.split(f"{name} filmed")]
    batch = data.batch(np.arange(COUNT))
    parts, full, near, gain = GOALS[name]
    window = data.intrinsics, data.width, data.height
    boxes = torch.stack([box_mask(batch.landmarks, batch.poses, *window, part) for part in parts]).any(0)

    def shown(landmarks: torch.Tensor) -> torch.Tensor:
        return over(render_head(head, landmarks, batch.poses, *window), batch.backdrop)

    with torch.no_grad():
        edited, unedited = shown(batch.landmarks), shown(torch.from_numpy(filmed))
    outside = 10 * np.log10(SIZE * SIZE / data.width / data.height)  # the window is cut from a frame that is true elsewhere
    reached = psnr(edited, batch.frames, boxes)
    assert psnr(edited, batch.frames) + outside > full
    assert reached > near
    assert reached > psnr(unedited, batch.frames, boxes) + gain


@pytest.mark.slow
def test_beyond_its_range_the_blend_stays_and_the_windows_go_on(actor, head):
    rest = head.code.centres
    seen, _ = split_off_validation(actor.split("train"), CONFIG.held_out)  # the rest tells training when to stop
    learned = torch.from_numpy(actor.load_landmarks()[seen]) - rest
    low, high = learned.amin(0), learned.amax(0)
    border = torch.stack([head.blend.low, head.blend.high])
    wanted = torch.stack([low - MARGIN * (high - low), high + MARGIN * (high - low)])
    torch.testing.assert_close(border, wanted, rtol=1e-3, atol=1e-7)  # half precision in the file
    beyond = border + torch.tensor([-0.05, 0.05])[:, None, None]
    torch.testing.assert_close(head.blend(beyond), head.blend(border), rtol=0, atol=1e-6)
    poses = torch.from_numpy(actor.load_poses()[[0, 0]])
    moved = head(rest + beyond, poses).means - head(rest + border, poses).means
    pushed = 0.05 * head.skinning_weights().sum(1) * torch.tensor([-1.0, 1.0])[:, None]
    expected = pushed[..., None] * poses[:, None, :3, :3].sum(-1)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-5)


def test_the_edits_do_what_they_say(actor):
    landmarks, neutral = actor.load_landmarks()[:SPOKEN], actor.load_neutral()[0]
    rows = starting_rows(landmarks)
    widest, typical = landmarks[[rows["widest"]]], landmarks[[rows["typical"]]]
    assert lip_opening(widest)[0] == lip_opening(landmarks).max()
    wide = EDITS["mouth 1.5 x"].change(widest, neutral)
    assert lip_opening(wide)[0] == pytest.approx(1.5 * lip_opening(widest)[0] - 0.5 * lip_opening(neutral[None])[0], rel=1e-4)
    assert np.abs(eye_opening(closed_eyes(typical))).max() < 1e-6
    wink = closed_eyes(typical, (EYE_LEFT,))
    assert eye_opening(wink)[0, 0] == eye_opening(typical)[0, 0] and abs(eye_opening(wink)[0, 1]) < 1e-6
    jaw = jaw_sideways(typical, neutral) - typical
    assert jaw[0, 8, 0] == pytest.approx(0.007, rel=1e-3) and not jaw[0, NOSE].any() and not jaw[0, [0, 16]].any()
    pulled = half_smile(typical) - typical
    assert np.linalg.norm(pulled[0, 54]) > 0.009 and not pulled[0, 48].any()
    brows = EDITS["one brow up"].change(typical, neutral) - typical
    assert brows[0, 24, 1] > 0.007 and brows[0, 19, 1] < 0 and not brows[0, 27:].any()


@pytest.mark.slow
def test_the_sheet_shows_every_edit_of_the_face(actor, head):
    landmarks, poses, info = actor.load_landmarks()[:SPOKEN], actor.load_poses()[:SPOKEN], actor.info
    sheet = make_expression_sheet(head, landmarks, poses, actor.load_neutral()[0], info.intrinsics, SIZE, SIZE,
                                  actor.load_plates()[0])
    rows, side = -(-len(EDITS) // COLUMNS), sheet.shape[1] // COLUMNS
    assert sheet.dtype == np.uint8 and sheet.shape == (rows * (side + CAPTION), COLUMNS * side, 3)
    extent = np.ptp(project(landmarks[:, INNER51], poses, info.intrinsics), axis=1).max()
    assert extent < side <= SIZE
    cells = sheet.reshape(rows, side + CAPTION, COLUMNS, side, 3).swapaxes(1, 2).reshape(-1, side + CAPTION, side, 3)
    assert len({cell[CAPTION:].tobytes() for cell in cells}) == len(EDITS), "each edit changes the face"
    assert all(cell[:CAPTION].min() < 100 for cell in cells), "each cell has its caption"


@pytest.mark.slow
def test_the_sheet_wants_a_pose_for_every_face(actor, head):
    landmarks, poses = actor.load_landmarks(), actor.load_poses()
    with pytest.raises(TalkheadError, match="as many poses as landmarks, found 3 and 4"):
        make_expression_sheet(head, landmarks[:4], poses[:3], actor.load_neutral()[0], actor.info.intrinsics, SIZE, SIZE)
