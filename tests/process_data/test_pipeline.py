import numpy as np
import pytest

from process_data import pipeline
from process_data.actor.actor import make_actor
from process_data.config import ProcessConfig
from process_data.pipeline import process
from shared.clip import HEAD, MOUTH, NECK, TORSO, Clip
from shared.errors import TalkheadError
from shared.landmarks import INNER51, eye_opening, lip_opening
from shared.media.video_io import read_gray_video, read_png, read_video
from shared.metrics import correlation, landmark_motion_error, psnr, rotation_error_degrees


def check_tracker(clip, truth):
    assert not clip.info.excluded  # the face was found in every frame
    count = clip.info.frames
    error = landmark_motion_error(clip.load_landmarks(), truth.landmarks[:count], INNER51)
    assert error <= 0.0015, f"inner landmarks move {1000 * error:.2f} mm wrong"
    turned = rotation_error_degrees(clip.load_poses(), truth.poses[:count])
    assert turned <= 1.5, f"rotation is {turned:.2f} degrees wrong"


def test_the_tracker_recovers_the_actor(actor_clip):
    clip, truth = actor_clip
    check_tracker(clip, truth)
    tracked, true = clip.load_landmarks(), truth.landmarks[: clip.info.frames]
    assert correlation(lip_opening(tracked), lip_opening(true)) > 0.8
    lids, true_lids = eye_opening(tracked).mean(1), eye_opening(true).mean(1)
    assert true_lids.min() < 0.5 * np.median(true_lids)  # the actor blinks in this stretch: so must the tracked lids
    assert lids.min() < 0.6 * np.median(lids)
    assert abs(lip_opening(clip.load_neutral())[0]) < 0.003


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_the_tracker_recovers_other_people(tmp_path, seed):
    truth = make_actor(tmp_path, size=256, seconds=3.2, seed=seed, quiet=True)
    check_tracker(process(truth.video, tmp_path / "clip", config=ProcessConfig(), quiet=True), truth)


def test_labels_plate_and_torso_agree_with_the_truth(actor_clip):
    clip, truth = actor_clip
    overlap = {HEAD: [], TORSO: []}
    for found, true in zip(clip.label_frames(), read_gray_video(truth.root / "labels.mkv")):
        for label, values in overlap.items():
            same = {HEAD: (HEAD, MOUTH), TORSO: (TORSO, NECK)}[label]
            a, b = np.isin(found, same), np.isin(true, same)
            values.append((a & b).sum() / (a | b).sum())
    assert np.mean(overlap[HEAD]) > 0.85 and np.mean(overlap[TORSO]) > 0.85
    plate = read_png(clip.background)
    true_plate = read_png(truth.root / "background.png")
    seen = np.stack([f == 0 for f in clip.label_frames()]).all(0)
    assert psnr(plate, true_plate, seen) > 28
    motion = clip.load_torso_motion()[:, :4]
    wrong = (motion - motion[0]) - (truth.torso_motion - truth.torso_motion[0])[: len(motion)]
    assert np.abs(wrong[:, :2]).mean() < 0.5


def test_the_clip_folder_is_complete(actor_clip):
    clip, _ = actor_clip
    again = Clip(clip.root)
    assert again.info.split == {"train": [(0, 72)], "test": [(72, 80)]}
    assert len(again.load_audio()) == 80 * 640
    assert len(list(again.frames())) == 80
    assert not (clip.root / ".partial").exists()
    assert clip.gaze.name in again.info.content and np.isfinite(again.load_gaze()).all() and again.load_gaze().std() > 0
    page = clip.report.read_text()
    assert "nly 3.2 s long" in page and page.count("<img") >= 16 and "http" not in page.replace("http-equiv", "")
    with pytest.raises(TalkheadError, match="finished clip already"):
        process(clip.root / "video.mp4", clip.root, config=ProcessConfig())


def test_an_interrupted_run_continues_and_ends_the_same(actor_clip, tmp_path, monkeypatch):
    clip, truth = actor_clip

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.segmentation_pass, "segment_frames", stop)
        with pytest.raises(KeyboardInterrupt):
            process(truth.video, tmp_path / "clip", config=ProcessConfig(), quiet=True)
    assert not Clip(tmp_path / "clip").exists()
    # tracking is not done twice, so nothing calls it
    monkeypatch.setattr("process_data.detection.detection_pass.detect_chunk", stop)
    again = process(truth.video, tmp_path / "clip", config=ProcessConfig(), workers=1, quiet=True)
    np.testing.assert_array_equal(again.load_landmarks(), clip.load_landmarks())
    np.testing.assert_array_equal(again.load_torso_motion(), clip.load_torso_motion())
    for ours, theirs in ((again.label_frames(), clip.label_frames()), (again.alpha_frames(), clip.alpha_frames())):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_square_25_fps_video_is_copied_bit_for_bit(actor_clip):
    clip, truth = actor_clip
    for made, source in zip(clip.frames(0, 5), read_video(truth.video)):
        np.testing.assert_array_equal(made, source)
