"""Verdicts on the footage, quality.json, and what is said of a processed clip."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from process_data.report import topics
from process_data.report.footage import sample_frames, samples
from process_data.report.scores import VERDICTS, Score, read_scores, write_scores
from process_data.report.topics import APART, LIMITS, MARK, head_speed, judge, mark, pick_worst
from process_data.tracking.residuals import Residuals
from shared.camera import pose_matrix, rotation_from_euler
from shared.errors import TalkheadError
from shared.files import read_json
from talkhead.inspect import describe


def test_the_worst_frames_are_spread():
    frames = np.arange(0, 200, 5)
    values = np.where(np.abs(frames - 100) < 20, 10.0 - np.abs(frames - 100) / 10, 0.0) + frames / 1000
    values[3] = np.nan
    chosen = pick_worst(frames, values)
    assert chosen[0] == 100 and len(chosen) == topics.MOST_WORST and 15 not in chosen
    assert np.diff(sorted(chosen)).min() >= APART
    assert pick_worst(frames[:1], np.array([np.nan])) == []


@pytest.mark.parametrize("name", LIMITS)
def test_a_number_is_judged_by_its_limits(name):
    limit = LIMITS[name]
    assert 0 < limit.good < limit.fair and limit.advice
    assert [limit.verdict(v) for v in (0.0, limit.good, 1.01 * limit.good, limit.fair, 1.01 * limit.fair, np.nan)] == [
        "good", "good", "fair", "fair", "poor", "unknown"]


def test_the_worst_number_decides_and_its_advice_is_given():
    clip = SimpleNamespace(info=SimpleNamespace(width=1024))
    numbers = {"corner_p95_px": 2 * 0.99 * LIMITS["corner_p95_px"].good, "lost_share": 0.99}  # pixels of twice the width
    score = topics._score("head poses", clip, numbers, [], "found", [3])
    assert (score.verdict, score.advice) == ("poor", LIMITS["lost_share"].advice)
    assert topics._score("head poses", clip, numbers | {"lost_share": 0.0}, [], "found", []).verdict == "good"
    assert topics._score("head poses", clip, {"lost_share": np.nan}, [], "found", []).verdict == "unknown"


def test_the_speed_of_the_head():
    angles = np.zeros((6, 3))
    angles[:, 0] = [0, 2, 4, 50, 50, 51]
    poses = pose_matrix(rotation_from_euler(angles), np.array([0, 0, 0.8]) + np.zeros((6, 3)))
    np.testing.assert_allclose(head_speed(poses, np.array([0, 0, 0, 1, 1, 1])), [np.nan, 50, 50, np.nan, 0, 25], atol=0.05)


def test_what_is_doubtful_is_marked():
    picture, mask = np.full((40, 40, 3), 100, np.uint8), np.zeros((20, 20), bool)
    mask[5:10, 5:10] = True
    out = mark(picture, mask)
    changed = (out != picture).any(-1)
    assert changed[10:20, 10:20].all() and changed.sum() == 100
    np.testing.assert_allclose(out[15, 15], 35 + 0.65 * np.array(MARK), atol=1)


def test_scores_are_read_as_they_were_written(tmp_path):
    scores = [Score("torso", "fair", "it moves", "sit still", {"rms": 3.25}, [{"shot": 1, "rms": 3.0}], [7, 90]),
              Score("background", "unknown", "nobody knows")]
    write_scores(tmp_path / "quality.json", scores)
    assert read_scores(tmp_path / "quality.json") == scores and read_scores(tmp_path / "none.json") == []
    assert [str(score) for score in scores] == ["torso: fair; it moves; sit still", "background: unknown; nobody knows"]
    values = read_json(tmp_path / "quality.json")
    for wrong, told in (({"format": 2}, "expected quality format 1, found 2; it may be deleted"),
                        ({"scores": [{"topic": "torso", "verdict": "superb", "found": ""}]},
                         "a verdict is one of good, fair, poor, unknown, found 'superb'"),
                        ({"scores": [{"topic": "torso"}]}, "the key 'verdict' is missing")):
        (tmp_path / "quality.json").write_text(json.dumps(values | wrong))
        with pytest.raises(TalkheadError, match=f"quality.json.*: .*{told}"):
            read_scores(tmp_path / "quality.json")


def test_a_processed_clip_is_scored(actor_clip):
    """Of the actor, whose plate, poses and motion are known to be tracked well, everything is known; inspect tells it."""
    clip, _ = actor_clip
    scores = read_scores(clip.quality)
    assert [score.topic for score in scores] == ["hair edges", "background", "head poses", "torso"]
    assert all(score.verdict in VERDICTS[:3] and score.numbers and score.worst for score in scores)
    assert all(bool(score.advice) == (score.verdict != "good") for score in scores)
    assert {name for score in scores for name in score.numbers} >= set(LIMITS)
    assert all(0 <= t < clip.info.frames for score in scores for t in score.worst)
    poses = scores[2].numbers
    assert poses["corner_median_px"] < poses["corner_p95_px"] < 1 and poses["speed_p95"] > 0
    assert clip.quality.name not in clip.content()
    lines = list(describe(clip.root))
    assert all(f"  {score}" in lines for score in scores)
    text = clip.report.read_text(encoding="utf-8")
    assert "What the footage allows" in text and all(score.verdict in text for score in scores)


def test_a_clip_whose_tracking_is_not_known_keeps_its_score_of_poses(actor_clip):
    clip, _ = actor_clip
    looked = list(samples(clip, sample_frames(clip)[:3]))
    earlier = read_scores(clip.quality)
    assert judge(clip, looked, None, earlier)[2].score == earlier[2]
    assert judge(clip, looked, None)[2].score.verdict == "unknown"


def test_motion_that_was_tracked_wrongly_lowers_the_scores(actor_clip):
    clip, _ = actor_clip
    looked = list(samples(clip, sample_frames(clip)[::4]))
    count = clip.info.frames
    bad = Residuals(np.full(count, 2.0), np.full(count, 1.5), np.full(count, 0.2), {})
    good = judge(clip, looked, None, read_scores(clip.quality))
    motion = clip.load_torso_motion().copy()
    motion[::2, 0] += 9
    wrong = SimpleNamespace(info=clip.info, load_torso_motion=lambda: motion)
    assert topics._poses(clip, looked, bad, ()).score.verdict == "poor"
    assert topics._torso(wrong, looked).score.numbers["torso_rms"] > 2 * good[3].score.numbers["torso_rms"]
