"""The end of a clip, which no training saw, beside the avatar driven by its sound: a short video and a few figures."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from shared.avatar import Avatar, motion_track
from shared.clip import Clip
from shared.files import make_folder, write_json
from shared.landmarks import FPS, SAMPLES_PER_FRAME
from shared.media.video_io import VideoWriter
from shared.progress import progress
from stage1_audio2lmk.evaluate import compare
from stage1_audio2lmk.stream import iter_predict, load_predictor
from talkhead.evaluation import evaluate_pictures
from talkhead.synthesis import Renderer, batch_size, to_uint8

FIGURES, VIDEO = "figures.json", "held_out.mp4"
LONGEST = 10 * FPS  # frames of the video
PICTURES = 24  # frames whose pictures are measured
PANEL = 360  # pixels; a larger picture is shrunk to it, two of them side by side
LARGEST = 2_200_000  # bytes of the video, which make 3 MB in a page
QUALITIES = (23, 28, 33, 38)  # of x264, tried until the video is small enough
AHEAD = 5  # frames of sound after the last one, more than stage 1 looks ahead


def measure_held_out(avatar: Avatar, clip: Clip, folder: Path, *, device: torch.device, quiet: bool = False) -> None:
    """Write VIDEO and then FIGURES into `folder`: {"split", "start", "frames", "figures": {name: number}}.

    The video shows the longest unbroken stretch of the clip's first held-out split, LONGEST at most: left the true frames,
    right the avatar driven by their sound, at the tracked poses and torso motion, with the true sound. Figures: "opening r",
    "velocity", "lips px", "lag ms" of the lips from sound (see `stage1_audio2lmk.evaluate.compare`), and PSNR in dB of the
    pictures driven by tracked landmarks, "full", "head" and "mouth". Raises TalkheadError.
    """
    split = clip.held_out()[0]
    frames, shot = motion_track(clip, split)
    frames = frames[:LONGEST]
    rows = _from_sound(avatar, clip, frames, device)
    poses = clip.load_poses()[frames]
    lips = compare(rows, clip.load_landmarks()[frames], poses, clip.info.intrinsics)
    chosen = np.unique(np.linspace(0, len(frames) - 1, PICTURES).round().astype(int))
    some = clip.with_split({split: [(int(t), int(t) + 1) for t in frames[chosen]]})
    renderer = Renderer(avatar, device)
    pictures = evaluate_pictures(renderer, some, [split], quiet=quiet)[split]
    make_folder(folder)
    _write_video(folder / VIDEO, renderer, clip, frames, shot, rows, poses, quiet)
    write_json(folder / FIGURES, {
        "split": split, "start": int(frames[0]), "frames": len(frames),
        "figures": {**lips, **{f"{name} psnr": pictures[f"{name} psnr"] for name in ("full", "head", "mouth")}}})


def _from_sound(avatar: Avatar, clip: Clip, frames: np.ndarray, device: torch.device) -> np.ndarray:
    """The landmarks (n,68,3) of `frames` (n,), which follow each other, as the clip's sound up to them gives them."""
    sound = clip.load_audio()[: SAMPLES_PER_FRAME * (int(frames[-1]) + 1 + AHEAD)]
    predictor = load_predictor(avatar.stage1, device)
    return np.concatenate(list(iter_predict(predictor, [sound], avatar.load_neutral())))[frames]


def _write_video(path: Path, renderer: Renderer, clip: Clip, frames: np.ndarray, shot: int, rows: np.ndarray, poses: np.ndarray,
                 quiet: bool) -> None:
    device = renderer.device
    plate, motion, gaze = renderer.plate(clip.load_plates()[shot]), clip.load_torso_motion()[frames], clip.load_gaze()[frames]
    sound = clip.load_audio()[SAMPLES_PER_FRAME * int(frames[0]) : SAMPLES_PER_FRAME * (int(frames[-1]) + 1)]
    pairs: list[np.ndarray] = []
    with progress(len(frames), "held-out frames", quiet=quiet, unit="frame") as bar:
        for start in range(0, len(frames), batch_size(device)):
            part = slice(start, start + batch_size(device))
            head = renderer.head_rgba(rows[part], poses[part], motion[part], gaze[part])
            drawn = renderer.compose(head, poses[part], motion[part], plate)
            true = torch.as_tensor(clip.read_frames(frames[part]), device=device).float() / 255
            pairs += list(to_uint8(_small(torch.cat([true, drawn], dim=2))))
            bar.update(len(drawn))
    height, width = pairs[0].shape[:2]
    for quality in QUALITIES:
        with VideoWriter(path, width, height, audio=sound, crf=quality) as writer:
            for pair in pairs:
                writer.write(pair)
        if path.stat().st_size <= LARGEST:
            return


def _small(pairs: torch.Tensor) -> torch.Tensor:
    """Pictures (B,H,2W,3) shrunk to a height of PANEL where they are higher."""
    height, width = pairs.shape[1:3]
    if height <= PANEL:
        return pairs
    size = (PANEL, round(PANEL * width / height / 4) * 4)
    return F.interpolate(pairs.permute(0, 3, 1, 2), size, mode="bilinear", antialias=True).permute(0, 2, 3, 1)
