"""Writes docs/settings.md: every setting of every configuration, from the dataclasses; `python -m tools.settings_page`."""

import dataclasses
import typing
from pathlib import Path
from typing import Any

from process_data.config import ProcessConfig
from shared.files import atomic_path
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.encoders.speech_encoder import SpeechEncoderConfig
from stage1_audio2lmk.encoders.train_speech_encoder import SpeechTraining
from stage1_audio2lmk.pretrain import PretrainConfig
from stage2_gaussian.config import Stage2Config
from torso_styleunet.config import TorsoConfig

PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"
CONFIGS = {
    "`talkhead process`, `talkhead import adnerf`": ProcessConfig,
    "`talkhead stage1 finetune`": Stage1Config,
    "`talkhead stage1 pretrain`": PretrainConfig,
    "`talkhead stage2 train`": Stage2Config,
    "`talkhead torso train`": TorsoConfig,
    "sizes of the built-in speech encoder, in its file": SpeechEncoderConfig,
    "`python -m stage1_audio2lmk.encoders.train_speech_encoder`": SpeechTraining,
}
INTRODUCTION = """# Settings

<!-- written by `python -m tools.settings_page`; change the dataclasses instead -->

What `--set KEY=VALUE` and the YAML file of `--config` can change. A value outside the bounds (both are allowed), of another
type or not finite is refused with one sentence, and so are unknown and repeated keys.
"""


def kind_of(hint: Any) -> str:
    """A type in words."""
    names = {bool: "true or false", int: "whole number", float: "number", str: "text", type(None): "null"}
    options = typing.get_args(hint) or (hint,)
    return " or ".join(names.get(option, "group of keys") for option in options)


def value_of(value: Any) -> str:
    """A default or bound as YAML has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def table(cls: Any) -> str:
    """The rows of one configuration."""
    hints = typing.get_type_hints(cls)
    lines = ["| setting | type | default | least | most | meaning |", "|---|---|---|---|---|---|"]
    for field in dataclasses.fields(cls):
        least, most = ("" if bound is None else value_of(bound) for bound in (field.metadata["low"], field.metadata["high"]))
        cells = (f"`{field.name}`", kind_of(hints[field.name]), value_of(field.default), least, most, field.metadata["meaning"])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    return INTRODUCTION + "".join(f"\n## {title}\n\n{table(cls)}\n" for title, cls in CONFIGS.items())


if __name__ == "__main__":
    with atomic_path(PAGE) as partial:
        partial.write_text(page(), encoding="utf-8")
