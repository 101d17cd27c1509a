"""Written videos say that their colours are those of BT.709, and they are."""

import shutil
import subprocess

import av
import numpy as np
import pytest

from shared.media.video_io import TransparentVideoWriter, VideoWriter, read_video

PATCHES = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[255, 255, 0], [200, 150, 120], [255, 255, 255]],
                    [[90, 60, 50], [20, 200, 100], [0, 0, 0]]], np.uint8)
PICTURE = np.repeat(np.repeat(PATCHES, 32, 0), 32, 1)


@pytest.mark.parametrize("name", ["c.mp4", "c.mov", "c.mkv", "alpha.mov", "alpha.webm"])
def test_saturated_colors_come_back_and_the_stream_says_which_they_are(tmp_path, name):
    path, writer = tmp_path / name, TransparentVideoWriter if name.startswith("alpha") else VideoWriter
    frame = PICTURE if writer is VideoWriter else np.dstack([PICTURE, np.full(PICTURE.shape[:2], 255, np.uint8)])
    with writer(path, 96, 96) as video:
        for _ in range(5):
            video.write(frame)
    with av.open(str(path)) as container:
        shown = next(container.decode(video=0))
        assert (shown.colorspace, shown.color_range) == (1, 1)  # BT.709, limited
        coder = container.streams.video[0].codec_context
        assert (coder.color_primaries, coder.color_trc, coder.colorspace, coder.color_range) == (1, 1, 1, 1)
    if path.suffix in (".mp4", ".mov"):
        data = path.read_bytes()
        at = data.index(b"colrncl")
        assert data[at + 8 : at + 14] == bytes([0, 1, 0, 1, 0, 1])
    decoded = [next(read_video(path))]
    if shutil.which("ffmpeg") and writer is VideoWriter:
        raw = subprocess.run(["ffmpeg", "-v", "error", "-i", path, "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
                             capture_output=True, check=True).stdout
        decoded.append(np.frombuffer(raw, np.uint8).reshape(96, 96, 3))
    for rgb in decoded:
        middles = rgb.reshape(3, 32, 3, 32, 3)[:, 12:20, :, 12:20].mean((1, 3))
        assert np.abs(middles - PATCHES).max() < 5
