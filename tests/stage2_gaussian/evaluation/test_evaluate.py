"""What `stage2 eval` measures: regions, per-frame figures, tables, sheet and files."""

import dataclasses
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.spatial import Delaunay

from cli import cli
from shared.avatar import Avatar, AvatarInfo
from shared.camera import pose_matrix, project
from shared.clip import Clip
from shared.errors import TalkheadError
from shared.files import write_json
from shared.landmarks import EYE_LEFT, EYE_RIGHT, LIPS, eye_opening, lip_opening
from shared.metrics import psnr, ssim
from stage2_gaussian.checkpoint import load_head, save_head
from stage2_gaussian.config import Stage2Config, resolve
from stage2_gaussian.dataset import HeadDataset, box_mask
from stage2_gaussian.evaluation.evaluate import (
    Measured,
    as_record,
    composite,
    evaluate,
    evaluate_head,
    hull_mask,
    measure,
    measure_split,
    regions,
    representative_frames,
    sharpness_table,
    split_tables,
)
from stage2_gaussian.evaluation.sharpness import Detail
from stage2_gaussian.train import new_head

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def avatar(cartoon, tmp_path_factory) -> Avatar:
    """An untrained head of the cartoon, which already resembles it."""
    made = Avatar(tmp_path_factory.mktemp("eval") / "toon.avatar")
    config = resolve(Stage2Config(splats=600, rank=6, hidden=16), CPU, 96, 96)
    save_head(made.stage2, new_head(cartoon, cartoon.split("train"), config), {})
    info = cartoon.info
    write_json(made.json, dataclasses.asdict(AvatarInfo(info.name, info.width, info.height, info.intrinsics, info.fps)))
    return made


@pytest.fixture(scope="module")
def test_frames(cartoon):
    data = HeadDataset(cartoon, cartoon.split("test"), CPU)
    return data, data.batch(np.arange(len(data)))


def test_a_hull_holds_what_lies_between_its_points():
    points = torch.from_numpy(np.random.default_rng(0).uniform(5, 45, (3, 30, 2)))
    masks = hull_mask(points, 50, 40)
    centres = np.stack(np.meshgrid(np.arange(50) + 0.5, np.arange(40) + 0.5), -1)
    for mask, row in zip(masks, points.numpy()):
        np.testing.assert_array_equal(mask.numpy(), Delaunay(row).find_simplex(centres) >= 0)


def test_a_box_holds_its_landmarks_and_little_else():
    rng = np.random.default_rng(0)
    landmarks = torch.from_numpy(rng.normal(size=(2, 68, 3)) * [0.02, 0.01, 0.005])
    poses = torch.from_numpy(np.stack([pose_matrix(np.diag([1.0, -1, -1]), np.array([0, 0, 0.6]))] * 2)).double()
    camera = (600.0, 600.0, 64.0, 64.0)
    masks = box_mask(landmarks, poses, camera, 128, 128, LIPS)
    for mask, pixels in zip(masks, project(landmarks[:, LIPS], poses, camera).numpy()):
        for u, v in pixels:
            assert mask[min(127, int(v)), min(127, int(u))]
        width, height = np.ptp(pixels, axis=0)
        assert float(mask.sum()) == pytest.approx(1.5 * width * (height + 0.5 * width), rel=0.1)


def test_regions_lie_where_they_are_said_to(test_frames):
    data, frames = test_frames
    found = regions(frames, data)
    pixels = project(frames.landmarks, frames.poses, data.intrinsics).long()
    for t, points in enumerate(pixels):
        for name, part in (("eyes", EYE_RIGHT + EYE_LEFT), ("mouth", LIPS)):
            assert found[name][t][points[part, 1], points[part, 0]].all()
        assert not found["eyes"][t][points[LIPS, 1], points[LIPS, 0]].any()
        assert found["face"][t][points[LIPS, 1], points[LIPS, 0]].all()
    assert float((found["face"] & (frames.head > 0.5)).sum() / found["face"].sum()) > 0.9


def test_figures_of_a_known_error(test_frames):
    data, frames = test_frames
    masks = regions(frames, data)
    shown = frames.frames + 0.1 * masks["head"][..., None]
    rows = np.arange(len(data))
    values = measure(shown, frames, masks, data, rows, None)
    assert values["head psnr"].tolist() == pytest.approx([20] * len(data), abs=1e-3)
    for t in rows:
        assert float(values["mouth ssim"][t]) == pytest.approx(ssim(shown[t], frames.frames[t], masks["mouth"][t]), abs=1e-6)
        whole = torch.from_numpy(data.clip.read_frames(data.indices[[t]])).float() / 255
        pasted = whole.clone()
        pasted[:, data.rows, data.columns] = shown[t]
        assert float(values["full psnr"][t]) == pytest.approx(psnr(pasted, whole), abs=1e-3)
        assert float(values["full ssim"][t]) == pytest.approx(ssim(pasted, whole), abs=2e-3)
    nothing = {"head": torch.zeros_like(masks["head"])}
    assert measure(shown, frames, nothing, data, rows, None)["head psnr"].isnan().all()


def test_lpips_sees_whole_frames_and_its_map_is_cut_to_the_window(test_frames):
    data, frames = test_frames
    shown = 1 - frames.frames

    def distance(a, b):
        difference = (a - b).abs().mean(-1)
        return difference.mean((1, 2)), difference

    values = measure(shown, frames, {"all": torch.ones_like(frames.head)}, data, np.arange(len(data)), distance)
    expected = (shown - frames.frames).abs().mean((1, 2, 3))
    torch.testing.assert_close(values["all lpips"], expected)
    torch.testing.assert_close(values["full lpips"], expected * data.width * data.height / 96**2)


def test_means_are_over_frames_and_batches_do_not_matter(cartoon, avatar):
    head = load_head(avatar.stage2, CPU)
    a = measure_split(head, cartoon, "test", CPU, quiet=True, batch=3)
    b = measure_split(head, cartoon, "test", CPU, quiet=True, batch=8)
    for name, values in a.values.items():
        np.testing.assert_allclose(values, b.values[name], atol=2e-3)
    assert evaluate(cartoon, avatar.stage2, splits=["test"], device=CPU, quiet=True)["test"] == pytest.approx(b.means(), abs=2e-3)
    frames = b.data.batch(np.arange(8))
    shown, alpha = composite(head, frames, frames.poses, b.data)
    assert b.means()["head psnr"] == pytest.approx(psnr(shown, frames.frames, frames.head), abs=1e-3)
    assert alpha.shape == frames.head.shape and torch.equal((shown * 255).round() / 255, shown)


class Frames:
    """Stands in for HeadDataset where only the frames' numbers are wanted."""

    def __init__(self, count):
        self.indices = np.arange(count)

    def __len__(self):
        return len(self.indices)


def test_worst_frames_shots_and_gaps_in_a_region():
    values = np.r_[np.full(90, 30.0), np.full(10, 20.0)]
    measured = Measured(Frames(100), {"": torch.zeros(100, 4, 4)},
                        {"head psnr": values, "mouth psnr": np.where(np.arange(100) < 50, np.nan, 25.0)}, {})
    assert measured.means() == {"head psnr": pytest.approx(29), "mouth psnr": 25}
    assert measured.worst()["head psnr"] == 20
    tables = split_tables(measured, "new", SimpleNamespace(shot_of_frames=lambda: np.repeat([0, 1], [40, 160])))
    assert tables["new: 100 frames, head over truth"]["head"] == {"PSNR": pytest.approx(29), "worst 5 %": 20}
    shots = tables["new, PSNR by shot"]
    assert shots["frames 0–39 (40)"] == {"head": 30} and shots["frames 40–99 (60)"]["mouth box"] == 25
    one = split_tables(measured, "new", SimpleNamespace(shot_of_frames=lambda: np.zeros(200, int)))
    assert list(one) == ["new: 100 frames, head over truth"]


def test_sharpness_is_of_all_open_mouths_together():
    shut = float("nan")
    details = {prefix: Detail(*torch.tensor([[3.0, shut, 1.0], [0.5, shut, 0.5], [1.0, shut, shared]]))
               for prefix, shared in (("", 0.6), ("aligned ", 1.0))}
    measured = Measured(Frames(3), {}, {}, details)
    assert sharpness_table(measured, "new") == {"new, detail of the mouth's interior": {"2 frames with the mouth open": {
        "contrast": 0.5, "sharpness": pytest.approx(0.4), "aligned contrast": 0.5, "aligned sharpness": 0.5}}}
    record = as_record(measured)
    assert record["aligned mouth detail shared"] == [1, None, 1] and record["mouth detail video"] == [3, None, 1]
    none = Detail(*torch.full((3, 3), shut))
    assert sharpness_table(Measured(Frames(3), {}, {}, {"": none}), "new") == {}


def test_the_sheet_shows_what_is_telling(cartoon, avatar):
    measured = measure_split(load_head(avatar.stage2, CPU), cartoon, "train", CPU, quiet=True, batch=16)
    found = representative_frames(measured)
    landmarks, worst = cartoon.load_landmarks(), measured.values["head psnr"].argmin()
    reasons = {reason: row for row, text in found.items() for reason in text.split(", ")}
    assert lip_opening(landmarks)[reasons["widest mouth"]] == lip_opening(landmarks)[:32].max()
    assert eye_opening(landmarks)[reasons["eyes most closed"]].max() == 0
    assert reasons["worst head PSNR"] == worst and 6 <= len(found) <= 8


def test_the_command_prints_and_writes(cartoon, avatar, tmp_path):
    arguments = ["stage2", "eval", str(cartoon.root), "--avatar", str(avatar.root), "--split", "train", "--device", "cpu",
                 "--every", "8", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    assert "train: 4 frames" in done.output and "aligned worst 5 %" in done.output and "train, flicker on frames" in done.output
    made = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert made["splits"]["train"]["frames"] == [0, 8, 16, 24] and len(made["splits"]["train"]["aligned eyes ssim"]) == 4
    row = made["tables"]["train: 4 frames, head over truth"]["mouth box"]
    assert row["PSNR"] == pytest.approx(np.mean(made["splits"]["train"]["mouth psnr"]), abs=1e-3)
    assert made["tables"][next(t for t in made["tables"] if "flicker" in t)]["head"]["ratio"] > 0
    assert made["splits"]["train"]["aligned mouth detail shared"] == [None] * 4  # in 96 pixels no mouth is large enough
    page = (tmp_path / "out" / "eval.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == len(re.findall(r"Frame \d+", page)) >= 3 and "error × 3, aligned" in page
    without = CliRunner().invoke(cli, [*arguments, "--no-align"])
    assert without.exit_code == 0 and "aligned" not in without.output


def test_a_users_mistakes_are_sentences(cartoon, avatar, tmp_path):
    arguments = ["stage2", "eval", str(cartoon.root), "--avatar", str(avatar.root), "-o", str(tmp_path / "out")]
    assert "no split 'new'; this clip has train, test" in CliRunner().invoke(cli, [*arguments, "--split", "new"]).output
    done = CliRunner().invoke(cli, [*arguments, "--lpips", str(tmp_path)])
    assert done.exit_code == 2 and "alexnet-owt-7be5be79.pth does not exist" in done.output
    shutil.copytree(cartoon.root, tmp_path / "clip", ignore=shutil.ignore_patterns(".cache"))
    made = json.loads((tmp_path / "clip" / "clip.json").read_text())
    made["bad"] = [{"start": 30, "stop": 40, "reason": "no face"}]
    (tmp_path / "clip" / "clip.json").write_text(json.dumps(made))
    with pytest.raises(TalkheadError, match="the split 'test' holds no good frame"):
        evaluate_head(Clip(tmp_path / "clip"), avatar.stage2, tmp_path / "out", splits=["test"], device=CPU, quiet=True)
    assert not (tmp_path / "out").exists()
