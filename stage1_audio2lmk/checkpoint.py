"""The file of a stage-1 model: written by `save_model`, read by `load_model`.

Tensors: the model's; under "encoder." the built-in speech encoder's in half precision, or the projection of one of the
transformers library. Meta: "kind", "format", "model" (sizes of its parts, its prior's too), "encoder" (see `Encoder.info`),
"speakers", and "settings", those of the training, for the record.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from shared.checkpoint import check_finite, load_checkpoint, load_module, save_checkpoint
from shared.config import config_from_dict, config_to_dict, shown
from shared.errors import TalkheadError
from stage1_audio2lmk.config import KernelConfig, Stage1Config, TransformerConfig
from stage1_audio2lmk.encoders.base import Encoder
from stage1_audio2lmk.encoders.speech_encoder import SPEECH_ENCODER, SpeechEncoder, SpeechEncoderConfig
from stage1_audio2lmk.encoders.transformers_encoder import TRANSFORMERS, TransformersEncoder, load_encoder_of
from stage1_audio2lmk.kernel import KernelRegressor
from stage1_audio2lmk.model import LandmarkModel
from stage1_audio2lmk.transformer import LandmarkTransformer

FORMAT = 3
PREFIX = "encoder."
SHIPPED_BASE = Path(__file__).parent / "data" / "base.safetensors"


class Loaded(NamedTuple):
    """What a checkpoint holds."""

    model: LandmarkModel  # in evaluation mode, frozen
    speakers: list[str]
    encoder: Encoder | None


def save_model(path: Path, model: LandmarkModel, speakers: list[str], encoder: Encoder | None = None,
               settings: Stage1Config | None = None) -> None:
    """Write a model, its encoder, the speakers' names and the settings of its training."""
    tensors = dict(model.state_dict())
    if isinstance(encoder, SpeechEncoder):
        tensors |= {PREFIX + name: value.half() if value.is_floating_point() else value
                    for name, value in encoder.state_dict().items()}
    elif isinstance(encoder, TransformersEncoder):
        tensors |= {PREFIX + name: value for name, value in encoder.fitted.state_dict().items()}
    save_checkpoint(path, tensors, {
        "kind": "stage1", "format": FORMAT, "model": _sizes(model), "encoder": encoder.info() if encoder is not None else None,
        "speakers": speakers, "settings": config_to_dict(settings) if settings is not None else {}})


def load_model(path: Path, device: torch.device | str, encoder: Encoder | str | None = None) -> Loaded:
    """Read what `save_model` wrote. Raises TalkheadError.

    `encoder`: a folder or name where the checkpoint's encoder of the transformers library lies if no longer where it was in
    training; or the encoder itself, for one that talkhead cannot load, which must give the same `info`.
    """
    tensors, meta = load_checkpoint(path)
    if meta.get("kind") != "stage1":
        raise TalkheadError(f"{path} is no stage-1 model, but {shown(meta.get('kind', 'something else'))}")
    check_format(meta, path)
    speakers = meta.get("speakers")
    if not isinstance(speakers, list) or not speakers or not all(isinstance(speaker, str) for speaker in speakers):
        raise TalkheadError(f"{path} is damaged: it should name its speakers, found {shown(speakers)}")
    own = {name.removeprefix(PREFIX): tensors.pop(name) for name in list(tensors) if name.startswith(PREFIX)}
    check_finite(own, path)
    known = _load_encoder(meta.get("encoder"), own, device, encoder, path)
    sizes = meta.get("model")
    model = load_module(lambda: _build(sizes, tensors, str(path)), tensors, path).to(device).eval().requires_grad_(False)
    if model.size != (known.size if known is not None else 0):
        raise TalkheadError(f"{path} is damaged: its model compares embeddings of {model.size} numbers, its encoder gives "
                            f"{known.size if known is not None else 0}")
    return Loaded(model, speakers, known)


def check_format(meta: dict[str, Any], path: Path) -> None:
    """Raise TalkheadError for the meta of a stage-1 checkpoint of another version."""
    version = meta.get("format", 1)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise TalkheadError(f"{path} is damaged: its format should be {FORMAT}, found {shown(version)}")
    if version < FORMAT:
        raise TalkheadError(f"{path} was made by an older talkhead; run `talkhead stage1 finetune` again")
    if version > FORMAT:
        raise TalkheadError(f"{path} was made by a newer talkhead: its format is {version}, this one reads {FORMAT}; update "
                            "talkhead")


def _sizes(model: LandmarkModel) -> dict[str, Any]:
    """What `_build` needs to make the model."""
    transformer = model.transformer
    return {"kernel": config_to_dict(model.kernel.config),
            "transformer": config_to_dict(transformer.config) if transformer is not None else None,
            "share": model.share, "prior": _sizes(model.prior) if model.prior is not None else None}


def _build(sizes: Any, tensors: dict[str, Tensor], where: str, prefix: str = "") -> LandmarkModel:
    """A model of these sizes, as many support points as the tensors have. Raises TalkheadError."""
    optional = dict, type(None)
    parts: dict[str, Any] = {"kernel": dict, "transformer": optional, "share": (int, float), "prior": optional}
    if not isinstance(sizes, dict) or any(key not in sizes or not isinstance(sizes[key], kind) for key, kind in parts.items()):
        raise TalkheadError(f"{where} is damaged: it should tell the sizes of its model, found {shown(sizes)}")
    if not 0 <= sizes["share"] <= 1:
        raise TalkheadError(f"{where} is damaged: the share of its base should be 0 to 1, found {shown(sizes['share'])}")
    if prefix and sizes["prior"] is not None:
        raise TalkheadError(f"{where} is damaged: its base has another base")
    support = tensors.get(prefix + "kernel.support_mel")
    points = len(support) if support is not None and support.ndim else 0
    kernel = KernelRegressor(config_from_dict(KernelConfig, sizes["kernel"], where), points)
    transformer = LandmarkTransformer(config_from_dict(TransformerConfig, sizes["transformer"], where)) if sizes[
        "transformer"] is not None else None
    if transformer is not None and transformer.config.size != kernel.config.size:
        raise TalkheadError(f"{where} is damaged: its parts are for different encoders")
    prior = _build(sizes["prior"], tensors, where, prefix + "prior.") if sizes["prior"] is not None else None
    if prior is not None and prior.size != kernel.config.size:
        raise TalkheadError(f"{where} is damaged: its parts are for different encoders")
    return LandmarkModel(kernel, transformer, prior, float(sizes["share"]))


def _load_encoder(info: Any, tensors: dict[str, Tensor], device: torch.device | str, given: Encoder | str | None,
                  path: Path) -> Encoder | None:
    """The encoder that `info` describes. Raises TalkheadError."""
    if info is not None and not (isinstance(info, dict) and isinstance(info.get("kind"), str)):
        raise TalkheadError(f"{path} is damaged: it should tell its encoder, found {shown(info)}")
    if given is not None and not isinstance(given, str):
        if info != given.info():
            raise TalkheadError(f"{path} was trained with another encoder, {shown(info)}, not with {shown(given.info())}")
        return given
    kind = None if info is None else info["kind"]
    if given is not None and kind != TRANSFORMERS:
        raise TalkheadError(f"{path} has {'no' if kind is None else 'its own'} encoder and takes none, found {given}")
    if info is None:
        return None
    if kind == SPEECH_ENCODER:
        config = config_from_dict(SpeechEncoderConfig, info.get("config"), str(path))
        plain = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
        return load_module(lambda: SpeechEncoder(config), plain, path).to(device).eval().requires_grad_(False)
    if kind != TRANSFORMERS:
        raise TalkheadError(f"{path} needs an encoder that talkhead cannot load, {shown(info)}")
    encoder = load_encoder_of(info, device, given)
    _load_projection(encoder.fitted, tensors, path)
    return encoder


def _load_projection(projection: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    try:
        projection.load_state_dict(tensors)
    except RuntimeError as error:
        raise TalkheadError(f"{path} is damaged: the projection in it is not of its encoder") from error
