"""The whole chain on a few seconds of the synthetic actor: process → stage 1 → stage 2 → torso → synth, by commands."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cli import cli
from shared.avatar import Avatar
from shared.camera import project
from shared.clip import Clip
from shared.landmark_edit import smile
from shared.landmarks import LIPS, lip_opening, load_landmarks, save_landmarks
from shared.media.audio_io import load_audio, save_wav
from shared.media.video_io import read_video
from shared.metrics import correlation, psnr
from stage2_gaussian.checkpoint import load_head
from stage2_gaussian.evaluation.evaluate import evaluate as evaluate_head_alone
from stage2_gaussian.evaluation.evaluate import measure_split
from stage2_gaussian.evaluation.sharpness import sharpness
from talkhead.motion import MotionTrack
from tests.commands import talkhead


def test_the_avatar_speaks_an_unheard_sentence(chain):
    talkhead("synth", "me.avatar", "unheard.wav", "-o", "talk.mp4", "--save-landmarks", "said.npy", cwd=chain)
    frames = list(read_video(chain / "talk.mp4"))
    assert len(frames) == 50 and frames[0].shape == (128, 128, 3)
    assert abs(len(load_audio(chain / "talk.mp4")) - 32000) <= 1024
    said = load_landmarks(chain / "said.npy")
    assert correlation(lip_opening(said), lip_opening(load_landmarks(chain / "spoken.npy"))) > 0.5


@pytest.mark.slow
def test_synthesis_needs_no_face_tracker_and_imports_little(chain):
    code = ("import sys; sys.modules.update(mediapipe=None, cv2=None); from cli import cli; "
            "cli(['synth', 'me.avatar', 'unheard.wav', '-o', 'alone.mp4'], standalone_mode=False); "
            "print(*sorted({'process_data', 'scipy.linalg', 'scipy.spatial', 'scipy.signal', 'tensorboard', 'torch._decomp', "
            "'torch._dynamo', 'transformers'} & sys.modules.keys()))")
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=chain, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])})
    assert not done.stdout.splitlines()[-1]
    assert len(list(read_video(chain / "alone.mp4"))) == 50


def test_pictures_of_held_out_frames_are_like_the_video(chain):
    out = talkhead("eval", "me.avatar", "me", cwd=chain)
    assert "full psnr" in out and "ridge" in out
    header, row = next((a, b) for a, b in zip(out.splitlines(), out.splitlines()[1:]) if "full psnr" in a)
    values = dict(zip(["full psnr", "full ssim", "head psnr", "head ssim", "mouth psnr"], map(float, row.split()[1:])))
    assert values["full psnr"] > 26 and values["mouth psnr"] > 22, out
    assert not (chain / "me.avatar" / "eval").exists()  # an avatar holds no pictures of the person
    page = (chain / "me" / "training" / "eval" / "eval.html").read_text()
    assert "<table>" in page and "data:image/jpeg" in page
    tables = json.loads((chain / "me" / "training" / "eval" / "eval.json").read_text())["tables"]
    again = tables["finished video, tracked again: test"]
    assert again["true video"]["opening r"] > 0.8 and again["true video"]["px at 512"] < again["from the mean face"]["px at 512"]
    assert again["from tracked landmarks"]["opening r"] > again["from the mean face"]["opening r"]
    alone = evaluate_head_alone(Clip(chain / "me"), chain / "me.avatar" / "stage2.safetensors", splits=["test"],
                                device=torch.device("cpu"), quiet=True)["test"]
    ours = tables["finished frames, driven by tracked landmarks and torso motion at the tracked poses (dB, SSIM)"]["test"]
    assert ours["head over truth psnr"] == pytest.approx(alone["full psnr"], abs=0.01)  # one measure in both commands
    assert ours["head over truth ssim"] == pytest.approx(alone["full ssim"], abs=1e-3)
    head = load_head(chain / "me.avatar" / "stage2.safetensors", "cpu")
    detail = measure_split(head, Clip(chain / "me"), "test", torch.device("cpu"), quiet=True).details[""]
    assert {name for name in ours if name in ("mouth contrast", "mouth sharpness")} == {f"mouth {x}" for x in sharpness(detail)}
    for name, value in sharpness(detail).items():  # the torso has no part in the mouth
        assert ours[f"mouth {name}"] == pytest.approx(value, abs=0.02)


def test_hand_edited_landmarks_reach_the_picture(chain):
    clip = Clip(chain / "me")
    rest = np.repeat(clip.load_neutral(), 10, axis=0)
    save_landmarks(chain / "rest.npy", rest)
    save_landmarks(chain / "smile.npy", smile(rest, 1.0))
    for name in ("rest", "smile"):
        talkhead("synth", "me.avatar", "unheard.wav", "--landmarks", f"{name}.npy", "--poses", "still", "-o",
                 f"{name}.mp4", cwd=chain)
    plain, smiling = (np.stack(list(read_video(chain / f"{name}.mp4"))).astype(float) for name in ("rest", "smile"))
    assert len(plain) == 10
    change = np.abs(plain - smiling).mean((0, 3))
    poses = MotionTrack(Avatar(chain / "me.avatar"), "still").at(0, 1).poses
    lips = project(rest[0, LIPS], poses[0], clip.info.intrinsics)
    rows, columns = np.unravel_index(change.argsort(axis=None)[-100:], change.shape)
    away = np.hypot(columns - lips[:, 0].mean(), rows - lips[:, 1].mean())
    assert change.max() > 4 and (away < 1.5 * np.ptp(lips[:, 0])).mean() > 0.8  # the picture changes at the mouth


def test_the_stages_exchange_only_files(chain):
    talkhead("stage1", "predict", "unheard.wav", "--avatar", "me.avatar", "-o", "p.npy", cwd=chain)
    talkhead("edit", "p.npy", "-o", "e.npy", "--mouth-gain", 1.0, cwd=chain)
    talkhead("stage2", "render", "e.npy", "--avatar", "me.avatar", "-o", "frames", cwd=chain)
    talkhead("torso", "composite", "frames", "--avatar", "me.avatar", "-o", "steps.mp4", "--audio", "unheard.wav", cwd=chain)
    talkhead("synth", "me.avatar", "unheard.wav", "-o", "whole.mp4", cwd=chain)
    steps, whole = (np.stack(list(read_video(chain / name))) for name in ("steps.mp4", "whole.mp4"))
    assert steps.shape == whole.shape and psnr(steps, whole) > 38
    assert "landmarks (50, 68, 3)" in talkhead("inspect", "p.npy", cwd=chain)
    assert "avatar 'me'" in talkhead("inspect", "me.avatar", cwd=chain)
    assert "clip 'me'" in talkhead("inspect", "me", cwd=chain)


def test_an_empty_sound_file_is_refused_and_leaves_nothing(chain):
    save_wav(chain / "empty.wav", np.zeros(0))
    with contextlib.chdir(chain):
        result = CliRunner().invoke(cli, ["synth", "me.avatar", "empty.wav", "-o", "nothing.mp4"])
    assert result.exit_code == 2 and result.output.strip() == "Error: empty.wav holds 0 samples of audio"
    assert not list(chain.glob("*nothing*"))
