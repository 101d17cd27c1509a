"""The file of a stage-1 model: written by `save_model`, read by `load_model`."""

from pathlib import Path

import torch

from shared.checkpoint import check_finite, load_checkpoint, load_module, save_checkpoint
from shared.config import config_from_dict, config_to_dict, shown
from shared.errors import TalkheadError
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.encoders.pretrained import Encoder, load_encoder_of
from stage1_audio2lmk.model import LandmarkModel

SHIPPED_BASE = Path(__file__).parent / "data" / "base.safetensors"


def save_model(path: Path, model: LandmarkModel, speakers: list[str], encoder: Encoder | None = None) -> None:
    """Write weights, config, the speakers' names and what the model hears with; encoders' weights in half precision.

    Of an `encoder` outside the model that is its name, and the layers that were tuned.
    """
    tensors = {name: value.half() if name.startswith("encoder.") and value.is_floating_point() else value
               for name, value in model.state_dict().items()}
    if encoder is not None:
        tensors |= {f"tuned.{name}": value.half() for name, value in encoder.tuned_layers.state_dict().items()}
    save_checkpoint(path, tensors, {"kind": "stage1", "encoder": encoder.card() if encoder else model.card,
                                    "config": config_to_dict(model.config), "speakers": speakers})


def load_model(path: Path, device: torch.device | str,
               place: str | None = None) -> tuple[LandmarkModel, list[str], Encoder | None]:
    """Read what `save_model` wrote -> (model in eval mode, speakers' names, the encoder outside the model or None).

    `place`, a folder or name, is where that encoder lies if no longer where it was in training. Raises TalkheadError.
    """
    tensors, meta = load_checkpoint(path)
    if meta.get("kind") != "stage1":
        raise TalkheadError(f"{path} is no stage-1 model, but {shown(meta.get('kind', 'something else'))}")
    config, encoder, heard = config_from_dict(Stage1Config, meta.get("config"), str(path)), None, None
    card, speakers = meta.get("encoder"), meta.get("speakers")
    if not isinstance(card, (dict, str)) or isinstance(card, dict) != (config.encoder is not None):
        raise TalkheadError(f"{path} is damaged: it should tell what it hears with, found {shown(card)}")
    if not isinstance(speakers, list) or not speakers or not all(isinstance(speaker, str) for speaker in speakers):
        raise TalkheadError(f"{path} is damaged: it should name its speakers, found {shown(speakers)}")
    if isinstance(card, dict):
        encoder = load_encoder_of(card, device, place)
        tuned = {name.removeprefix("tuned."): tensors.pop(name) for name in list(tensors) if name.startswith("tuned.")}
        check_finite(tuned, path)
        try:
            encoder.tuned_layers.load_state_dict(tuned)
        except RuntimeError as error:
            raise TalkheadError(f"{path} is damaged: the tuned layers in it are not those of {encoder.name}") from error
        heard = encoder.layers, encoder.size
    elif place is not None:
        raise TalkheadError(f"{path} hears with {card} and takes no encoder, found {place}")
    centres = tensors["kernel.centres"].shape[0] if "kernel.centres" in tensors and tensors["kernel.centres"].ndim else 0
    model = load_module(lambda: LandmarkModel(config, len(speakers), centres, heard), tensors, path)
    model.card = card
    return model.to(device).eval(), speakers, encoder
