"""The trainings of an avatar's parts on one clip, in the order in which each assembles the avatar anew."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared.avatar import COMMANDS, Avatar, add_layers, add_part, create_from_clip, motion_track, refined_poses, refuse_other_clip
from shared.clip import Clip
from shared.files import make_folder, refuse_inputs, sha256
from shared.lock import lock_output
from shared.resume import training_of
from shared.training import pick_device
from stage1_audio2lmk import distributed
from stage1_audio2lmk import pretrain as stage1_pretrain
from stage1_audio2lmk import train as stage1
from stage1_audio2lmk.checkpoint import SHIPPED_BASE
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.pretrain import PretrainConfig
from stage2_gaussian import train as stage2
from stage2_gaussian.config import Stage2Config
from talkhead.synthesis import Renderer
from torso_styleunet import train as torso
from torso_styleunet.config import TorsoConfig
from torso_styleunet.layers import store_layers


@contextmanager
def _part(avatar: Avatar, clip: Clip, part: str, overwrite: bool) -> Iterator[Path]:
    """The folder of the training's state, while the part may be trained and nobody else trains it."""
    motion_track(clip)
    refuse_other_clip(avatar, clip, part, overwrite)
    state = clip.training / part
    with training_of(avatar.part(part), state, overwrite):
        yield state


def pretrain(clips: Sequence[Clip], output: Path | str, *, config: PretrainConfig | None = None,
             device: torch.device | str = "auto", speech: Path | str | None = None, overwrite: bool = False,
             quiet: bool = False) -> dict[str, Any] | None:
    """Train a base model on many people's clips -> `output` (.safetensors); returns figures. Raises TalkheadError.

    `speech` is the checkpoint of the speech encoder. Under torchrun all processes share the work; only the
    first gets the figures, the others None.
    """
    output, encoder = Path(output), None if speech is None else Path(speech)
    for clip in clips:
        clip.check()
    state = output.with_name(output.stem + ".training")
    refuse_inputs(output, encoder)
    with distributed.processes(pick_device(device)) as own:
        first = distributed.rank() == 0
        with training_of(output, state, overwrite) if first else nullcontext():
            distributed.barrier()
            numbers = stage1_pretrain.pretrain(list(clips), output, config=config or PretrainConfig(), device=own,
                                               state_dir=state, speech=encoder, quiet=quiet)
        return numbers if first else None


def finetune(clip: Clip, avatar: Avatar, *, config: Stage1Config | None = None, device: torch.device | str = "auto",
             base: Path | str | None = "shipped", encoder: str | None = None, overwrite: bool = False,
             quiet: bool = False) -> dict[str, Any]:
    """Train stage 1 of `avatar` on one person's `clip`; returns figures. Raises TalkheadError.

    `base` is the base model, a share of which goes into the person's: a file, None for nothing, or "shipped" for the one in
    the package, which an `encoder` (a speech encoder of the transformers library, by name or folder) replaces.
    """
    start = (None if encoder else SHIPPED_BASE) if str(base) == "shipped" else None if base is None else Path(base)
    config = config or Stage1Config()
    if encoder:  # a folder is found again from anywhere
        config = replace(config, encoder=str(Path(encoder).resolve()) if Path(encoder).is_dir() else encoder)
    refuse_inputs(avatar.stage1, start)
    with _part(avatar, clip, "stage1", overwrite) as state:
        numbers = stage1.train([clip], avatar.work("stage1"), config=config, device=pick_device(device), state_dir=state,
                               base=start, quiet=quiet)
        create_from_clip(avatar, clip, part="stage1")
    return numbers


def train_head(clip: Clip, avatar: Avatar, *, config: Stage2Config | None = None, device: torch.device | str = "auto",
               overwrite: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Train the Gaussian head on `clip`; the avatar's motion track then holds the poses fitted with it. Raises TalkheadError."""
    with _part(avatar, clip, "stage2", overwrite) as state:
        numbers = stage2.train(clip, avatar.work("stage2"), config=config or Stage2Config(), device=pick_device(device),
                               state_dir=state, quiet=quiet)
        create_from_clip(avatar, clip, part="stage2")
    return numbers


def train_torso(clip: Clip, avatar: Avatar, *, config: TorsoConfig | None = None, device: torch.device | str = "auto",
                overwrite: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Train the torso on `clip` around the avatar's head, at the poses fitted with it. Raises TalkheadError."""
    avatar.require("stage2")
    with _part(avatar, clip, "torso", overwrite) as state:
        poses, landmarks, motion, gaze = (refined_poses(avatar, clip), clip.load_landmarks(), clip.load_torso_motion(),
                                          clip.load_gaze())
        renderer = Renderer(avatar, device, parts=("stage2",))

        def heads(frames: np.ndarray) -> Tensor:
            """Frame indices (B,) of the clip -> head RGBA (B,H,W,4)."""
            return renderer.head_rgba(landmarks[frames], poses[frames], motion[frames], gaze[frames])

        numbers = torso.train(clip, heads, avatar.work("torso"), config=config or TorsoConfig(), device=renderer.device,
                              state_dir=state, poses=poses, head=sha256(avatar.stage2), quiet=quiet)
        add_part(avatar, clip, "torso")
    draw_layers(avatar, device=renderer.device, quiet=quiet)
    return numbers


def draw_layers(avatar: Avatar, *, device: torch.device | str = "auto", quiet: bool = False) -> int:
    """Draw and store the torso of the avatar's motion track, with which it speaks many times as fast; returns its frames.

    To be called again when motion track or torso were edited; `train_torso` ends with it. Raises TalkheadError.
    """
    avatar.require_folder()
    renderer = Renderer(avatar, device)
    neutral, (poses, motion), gaze = avatar.load_neutral(), avatar.load_motion(), avatar.load_gaze()

    def heads(rows: np.ndarray) -> Tensor:
        return renderer.head_rgba(np.repeat(neutral, len(rows), axis=0), poses[rows], motion[rows], gaze[rows])

    with lock_output(avatar.layers):
        path = avatar.work("layers").with_name(avatar.layers.name)
        make_folder(path.parent)
        count = store_layers(renderer.torso, heads, poses, motion, path, quiet)
        add_layers(avatar)
    return count


def others_of_another_clip(avatar: Avatar, clip: Clip) -> list[str]:
    """Sentences about parts of the avatar that are still of another clip, with the command that trains each anew."""
    return [f"the avatar's {part} is still of another clip, {known['name']!r}; run `talkhead {COMMANDS[part]} {clip.root} "
            f"--avatar {avatar.root} --overwrite`"
            for part, known in avatar.info.parts.items() if known["clip"] != clip.identity()]
