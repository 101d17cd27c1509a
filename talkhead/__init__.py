"""talkhead: from a few minutes of video of one person to an avatar that speaks any audio.

    from talkhead import Avatar, synthesize

    synthesize(Avatar("me.avatar"), "speech.wav", "talk.mp4")

docs/python.md has an example for each step. A name is imported when it is first used, so `import talkhead` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import talkhead_guard

talkhead_guard.check(*talkhead_guard.PACKAGES[:-1])

if TYPE_CHECKING:
    from process_data.check import check_video as check_video
    from process_data.config import ProcessConfig as ProcessConfig
    from process_data.importers.adnerf import import_adnerf as import_adnerf
    from process_data.importers.voca import import_voca as import_voca
    from process_data.pipeline import process as process
    from shared.avatar import Avatar as Avatar
    from shared.clip import Clip as Clip
    from shared.consent import Consent as Consent
    from shared.errors import TalkheadError as TalkheadError
    from shared.errors import TalkheadWarning as TalkheadWarning
    from shared.landmarks import load_landmarks as load_landmarks
    from shared.landmarks import save_landmarks as save_landmarks
    from shared.poses import load_poses as load_poses
    from stage1_audio2lmk.config import Stage1Config as Stage1Config
    from stage1_audio2lmk.pretrain import PretrainConfig as PretrainConfig
    from stage1_audio2lmk.stream import LandmarkStream as LandmarkStream
    from stage2_gaussian.config import Stage2Config as Stage2Config
    from talkhead.avatar_file import pack as pack
    from talkhead.avatar_file import unpack as unpack
    from talkhead.editing import edit as edit
    from talkhead.evaluation import evaluate_avatar as evaluate_avatar
    from talkhead.free_view import Orbit as Orbit
    from talkhead.free_view import render_free_view as render_free_view
    from talkhead.inspect import describe as describe
    from talkhead.motion import MotionTrack as MotionTrack
    from talkhead.speaking import Speaker as Speaker
    from talkhead.speaking import synthesize as synthesize
    from talkhead.splat_file import export_head as export_head
    from talkhead.splat_file import import_head as import_head
    from talkhead.synthesis import Predicted as Predicted
    from talkhead.synthesis import Rendered as Rendered
    from talkhead.synthesis import Renderer as Renderer
    from talkhead.synthesis import composite_folder as composite_folder
    from talkhead.synthesis import open_stream as open_stream
    from talkhead.synthesis import predict as predict
    from talkhead.training import finetune as finetune
    from talkhead.training import pretrain as pretrain
    from talkhead.training import train_head as train_head
    from talkhead.training import train_torso as train_torso
    from talkhead.verification import Verification as Verification
    from talkhead.verification import verify as verify
    from talkhead.video_to_avatar import TrainConfig as TrainConfig
    from talkhead.video_to_avatar import train_avatar as train_avatar
    from torso_styleunet.config import TorsoConfig as TorsoConfig

HOMES = {  # public name -> module that defines it
    "Avatar": "shared.avatar", "Clip": "shared.clip", "Consent": "shared.consent", "LandmarkStream": "stage1_audio2lmk.stream",
    "MotionTrack": "talkhead.motion", "Orbit": "talkhead.free_view", "Predicted": "talkhead.synthesis",
    "PretrainConfig": "stage1_audio2lmk.pretrain", "ProcessConfig": "process_data.config", "Rendered": "talkhead.synthesis",
    "Renderer": "talkhead.synthesis", "Speaker": "talkhead.speaking",
    "Stage1Config": "stage1_audio2lmk.config", "Stage2Config": "stage2_gaussian.config",
    "TalkheadError": "shared.errors", "TalkheadWarning": "shared.errors", "TorsoConfig": "torso_styleunet.config",
    "Verification": "talkhead.verification", "verify": "talkhead.verification",
    "composite_folder": "talkhead.synthesis", "describe": "talkhead.inspect", "edit": "talkhead.editing",
    "evaluate_avatar": "talkhead.evaluation", "export_head": "talkhead.splat_file", "finetune": "talkhead.training",
    "import_adnerf": "process_data.importers.adnerf", "import_head": "talkhead.splat_file",
    "import_voca": "process_data.importers.voca", "load_landmarks": "shared.landmarks", "load_poses": "shared.poses",
    "open_stream": "talkhead.synthesis", "pack": "talkhead.avatar_file", "predict": "talkhead.synthesis",
    "pretrain": "talkhead.training",
    "TrainConfig": "talkhead.video_to_avatar", "check_video": "process_data.check", "train_avatar": "talkhead.video_to_avatar",
    "process": "process_data.pipeline", "render_free_view": "talkhead.free_view", "save_landmarks": "shared.landmarks",
    "synthesize": "talkhead.speaking", "train_head": "talkhead.training", "train_torso": "talkhead.training",
    "unpack": "talkhead.avatar_file",
}
__all__ = sorted(HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name not in HOMES:
        raise AttributeError(f"module 'talkhead' has no attribute {name!r}")
    value = getattr(import_module(HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *HOMES})
