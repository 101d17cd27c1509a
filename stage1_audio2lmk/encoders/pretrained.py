"""Pretrained speech encoders of the transformers library: what they make of the sound, one row for each video frame.

These networks look both ways, so they hear the sound in blocks on the file's own clock. For the frames [k·block, (k + 1)·block)
a window starts `context` frames before them and ends `ahead` frames after them, with zeros before the file's start and after
its end, and only the outputs at the block's own frames are kept. Offline and in a stream the windows are the same, and so are
the rows. A second of sound costs (context + block + ahead)/block seconds of encoding, eleven by default.

Latency: a block's first row waits for the block's last frame and for those ahead, block − 1 + ahead frames after its own
(`Encoder.look_ahead`): 160 ms for blocks of five frames, 80 ms for blocks of three.

What an encoder's own feature extractor normalises (the mean and variance of the samples for most large wav2vec 2.0 and WavLM
models, the loudest mel for Whisper) it normalises over that one window, never over the file.
"""

import hashlib
import importlib
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.errors import TalkheadError
from shared.files import atomic_path
from shared.landmarks import SAMPLE_RATE, SAMPLES_PER_FRAME

FAMILIES = ("data2vec-audio", "hubert", "sew", "unispeech", "unispeech-sat", "wav2vec2", "wav2vec2-bert",
            "wav2vec2-conformer", "wavlm", "whisper")
BATCH = 8  # windows that go through the encoder at once
NOT_WEIGHTS = "masked_spec_embed"  # replaces what is masked in pretraining; random where a checkpoint lacks it, and never used


class Encoder(nn.Module):
    """A speech encoder that hears blocks of video frames; frozen until `tune`, and never in training mode.

    `layers` counts the hidden states, the first being what enters the transformer; `size` is their width. Dropout, dropped
    layers and masking stay off also while it is tuned: they draw from generators that cannot be seeded from here.
    """

    def __init__(self, name: str, model: nn.Module, extractor: Any, *, block: int = 5, context: int = 50,
                 ahead: int = 0) -> None:
        """`model` and its `extractor` as transformers loads them; block, context and ahead in video frames.

        Raises TalkheadError for frames that cannot be.
        """
        super().__init__()
        if block < 1 or context < 0 or ahead < 0:
            raise TalkheadError("an encoder needs block >= 1, context >= 0 and ahead >= 0 video frames, found "
                                f"{block}, {context} and {ahead}")
        self.name, self.model, self.extractor = name, model.requires_grad_(False), extractor
        self.block, self.context, self.ahead = block, context, ahead
        config: Any = model.config
        self.family, self.layers, self.size = config.model_type, config.num_hidden_layers + 1, config.hidden_size
        self.look_ahead = block - 1 + ahead
        self.tuned = 0  # layers that have been tuned, from the last
        # a convolution wider than its step hears that much past of the window's start, so that all outputs end in their frames
        self.lead = _overlap(getattr(config, "conv_kernel", ()), getattr(config, "conv_stride", ()))
        self.window = self.lead + (context + block + ahead) * SAMPLES_PER_FRAME  # samples
        self.longest = getattr(extractor, "n_samples", None)  # Whisper pads all sound to this many samples
        if self.longest is not None and self.window > self.longest:
            raise TalkheadError(f"{name} hears {self.longest / SAMPLE_RATE:g} s of sound at most, but context {context}, block "
                                f"{block} and ahead {ahead} are {self.window / SAMPLE_RATE:g} s")
        self.weights = _fingerprint(model)
        self.train(False)

    def train(self, mode: bool = True) -> "Encoder":
        """Stay in evaluation mode, whatever the module around it does."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def tuned_layers(self) -> nn.ModuleList:
        """The layers that `tune` freed, empty if none: their state_dict belongs in a checkpoint."""
        stack: Any = getattr(self.model, "encoder", self.model).layers
        return stack[len(stack) - self.tuned :]

    def tune(self, last: int) -> list[nn.Parameter]:
        """Let the last `last` transformer layers learn, all others stay frozen -> their parameters. Raises TalkheadError."""
        if not 1 <= last < self.layers:
            raise TalkheadError(f"{self.name} has {self.layers - 1} layers to tune, found {last}")
        self.tuned = last
        self.requires_grad_(False)
        return list(self.tuned_layers.requires_grad_(True).parameters())

    def card(self) -> dict[str, Any]:
        """What a checkpoint has to say about its encoder, for `load_encoder_of`; `weights` are those before any tuning."""
        return {name: getattr(self, name) for name in ("name", "family", "weights", "block", "context", "ahead", "tuned")}

    def forward(self, windows: Tensor) -> Tensor:
        """windows (n, self.window) -> rows of their blocks (n, block, layers, size), with gradients for what is tuned."""
        heard = self.extractor(list(windows.cpu().numpy()), sampling_rate=SAMPLE_RATE, return_tensors="pt")
        inputs = heard[self.model.main_input_name].to(self.device)
        states = torch.stack(self.model(inputs, output_hidden_states=True).hidden_states, 1)
        outputs = states.shape[2] * self.window // (self.longest or self.window)  # those of the window, without padding
        frames = F.adaptive_avg_pool2d(states[:, :, :outputs], (self.context + self.block + self.ahead, self.size))
        return frames[:, :, self.context : self.context + self.block].transpose(1, 2)

    def forward_blocks(self, samples: Tensor, first: int = 0) -> Tensor:
        """Sound (..., 640·T) -> rows (..., T − first, layers, size) of the frames from `first` on, with gradients.

        A block begins at `first` and hears the sound before it, zeros before that and after the end.
        """
        step, count = self.block * SAMPLES_PER_FRAME, samples.shape[-1] // SAMPLES_PER_FRAME - first
        blocks = -(-count // self.block)
        padded = F.pad(samples, (self.lead + (self.context - first) * SAMPLES_PER_FRAME,
                                 (blocks * self.block - count + self.ahead) * SAMPLES_PER_FRAME))
        rows = self(padded.unfold(-1, self.window, step).flatten(0, -2))
        return rows.reshape(*samples.shape[:-1], -1, self.layers, self.size)[..., :count, :, :]

    def encode(self, samples: np.ndarray) -> np.ndarray:
        """Sound (n,) at 16 kHz -> rows (ceil(n/640), layers, size) float32, as a stream gives them."""
        return np.concatenate(list(_pieces(self, samples)))


class EncoderStream:
    """Frames of sound in pieces of any number -> their rows, with a state that does not grow."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.reset()

    def reset(self) -> None:
        """Begin a new file."""
        self.sound = np.zeros(self.encoder.lead + self.encoder.context * SAMPLES_PER_FRAME, np.float32)  # the next window's

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Sound (640·t,), t ≥ 0 -> rows (m, layers, size) float32 of the blocks that are now complete."""
        if len(samples) % SAMPLES_PER_FRAME:
            raise ValueError(f"expected a multiple of {SAMPLES_PER_FRAME} samples, found {len(samples)}")
        self.sound = np.concatenate([self.sound, samples], dtype=np.float32)
        encoder, step = self.encoder, self.encoder.block * SAMPLES_PER_FRAME
        rows = [np.zeros((0, encoder.layers, encoder.size), np.float32)]
        count = max(0, len(self.sound) - encoder.window + step) // step
        if count:
            windows = torch.from_numpy(self.sound).unfold(0, encoder.window, step)
            with torch.inference_mode():
                rows += [encoder(part).flatten(0, 1).cpu().numpy() for part in windows.split(BATCH)]
        self.sound = self.sound[count * step :].copy()
        return np.concatenate(rows)

    def flush(self) -> np.ndarray:
        """The rows (m, layers, size) still to come, silence following the sound; then a new file begins."""
        encoder = self.encoder
        frames = (len(self.sound) - encoder.lead) // SAMPLES_PER_FRAME - encoder.context
        rows = self.push(np.zeros((-frames % encoder.block + encoder.ahead) * SAMPLES_PER_FRAME))[:frames]
        self.reset()
        return rows


class LayerMix(nn.Module):
    """A learned mean of an encoder's layers, then LayerNorm and a linear map (the weighting of SUPERB, Yang et al. 2021)."""

    def __init__(self, layers: int, size: int, out: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(layers))  # before their softmax: a plain mean at first
        self.norm, self.linear = nn.LayerNorm(size), nn.Linear(size, out)

    def forward(self, rows: Tensor) -> Tensor:
        """rows (..., layers, size) of any float type -> (..., out)."""
        return self.linear(self.normed(rows))

    def normed(self, rows: Tensor) -> Tensor:
        """rows (..., layers, size) -> the mean of their layers (..., size), each of zero mean and unit variance."""
        return self.norm(torch.einsum("...ls,l->...s", rows.to(self.weights.dtype), self.weights.softmax(0)))

    @torch.no_grad()
    def whiten(self, rows: Tensor) -> None:
        """Choose the linear map so that of rows (n, layers, size) come principal components of zero mean and unit variance.

        Where there are more to give than n − 1 or `size`, the others are 0.
        """
        x = self.normed(rows).double()
        _, singular, vt = torch.linalg.svd(x - x.mean(0), full_matrices=False)
        spread = singular / max(1, len(x) - 1) ** 0.5
        keep = min(self.linear.out_features, int((spread > 1e-4 * spread[0]).sum()))
        self.linear.weight.zero_()
        self.linear.weight[:keep] = (vt[:keep] / spread[:keep, None]).to(self.linear.weight)
        self.linear.bias.copy_(-self.linear.weight.double() @ x.mean(0))


def load_encoder(name: str, device: torch.device | str, *, block: int = 5, context: int = 50, ahead: int = 0) -> Encoder:
    """A folder or a name on the Hugging Face hub -> its encoder, frozen, in float32. Raises TalkheadError.

    Code that comes with a model is never run. Of Whisper only the encoder is kept.
    """
    transformers = _transformers()
    folder = Path(name).is_dir()
    try:
        with _quiet(transformers):
            config = transformers.AutoConfig.from_pretrained(name)
            if config.model_type not in FAMILIES:
                raise TalkheadError(f"{name} is a model of the kind {config.model_type!r}; stage 1 takes the speech encoders "
                                    f"{', '.join(FAMILIES)}")
            extractor = transformers.AutoFeatureExtractor.from_pretrained(name)
            model, info = transformers.AutoModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    except TalkheadError:
        raise
    except OSError as error:
        if folder:
            raise TalkheadError(f"{name} holds no speech encoder: {_first_line(error)}") from error
        why = ("HF_HUB_OFFLINE is set" if importlib.import_module("huggingface_hub").is_offline_mode()
               else f"downloading it failed ({_first_line(error)})")
        raise TalkheadError(f"{name} is neither a folder nor in the local cache, and {why}; download it once with "
                            f"`hf download {name}`, or name a folder") from error
    except Exception as error:  # what these libraries raise on files that are cut or of another kind is of many types
        raise TalkheadError(f"{name} holds no speech encoder: {_first_line(error)}") from error
    lacking = sorted(key for key in info["missing_keys"] if NOT_WEIGHTS not in key and not key.startswith("decoder."))
    if lacking:
        raise TalkheadError(f"{name}: {len(lacking)} of the encoder's weights are not in its file, first {lacking[0]}; "
                            "the file belongs to another model")
    if extractor.sampling_rate != SAMPLE_RATE:
        raise TalkheadError(f"{name} hears sound at {extractor.sampling_rate} Hz, but stage 1 works at {SAMPLE_RATE} Hz")
    model = model.encoder if config.model_type == "whisper" else model
    return Encoder(name, model, extractor, block=block, context=context, ahead=ahead).to(device)


def load_encoder_of(card: dict[str, Any], device: torch.device | str, name: str | None = None) -> Encoder:
    """The encoder that `Encoder.card` described, by its own name or from elsewhere. Raises TalkheadError if it is another.

    `tuned` layers are freed but hold the weights from before: load theirs into `tuned_layers`.
    """
    encoder = load_encoder(name or card["name"], device, block=card["block"], context=card["context"], ahead=card["ahead"])
    if encoder.weights != card["weights"]:
        raise TalkheadError(f"{encoder.name} is not the encoder that this model was trained with: its weights have the "
                            f"fingerprint {encoder.weights}, expected {card['weights']} of {card['name']}")
    if card["tuned"]:
        encoder.tune(card["tuned"])
    return encoder


def cached_rows(encoder: Encoder, samples: np.ndarray, folder: Path) -> np.ndarray:
    """`Encoder.encode` from a file in `folder`, written if it is missing or damaged: (ceil(n/640), layers, size) float16.

    The array is mapped from the file, not read. The file's name says which encoder, windows and samples it belongs to; what
    belongs to others stays and may be deleted. Values beyond float16 are clipped. Raises TalkheadError for a tuned encoder,
    or if the disk refuses.
    """
    if encoder.tuned:
        raise TalkheadError(f"{encoder.name} is tuned: only the rows of a frozen encoder can be cached")
    samples = np.ascontiguousarray(samples, np.float32)
    shape = (-(-len(samples) // SAMPLES_PER_FRAME), encoder.layers, encoder.size)
    if not len(samples):
        return np.zeros(shape, np.float16)
    slug = re.sub(r"[^\w.-]+", "-", Path(encoder.name).name) or "encoder"
    path = folder / f"{slug}-{_cache_key(encoder, samples)}.npy"
    rows = _map(path, shape)
    if rows is None:
        limit = np.finfo(np.float16).max
        with atomic_path(path) as partial, open(partial, "wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
            for piece in _pieces(encoder, samples):
                file.write(np.clip(piece, -limit, limit).astype("<f2").tobytes())
        rows = _map(path, shape)
        assert rows is not None, path
    return rows


def _map(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The float16 array in a file, mapped; None if there is none of that shape."""
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return rows if isinstance(rows, np.ndarray) and rows.dtype == np.float16 and rows.shape == shape else None


def _cache_key(encoder: Encoder, samples: np.ndarray) -> str:
    config: Any = encoder.model.config
    settings = {key: value for key, value in config.to_diff_dict().items()
                if key not in ("transformers_version", "_name_or_path", "architectures", "dtype")}
    said = [encoder.weights, settings, encoder.extractor.to_dict(), encoder.block, encoder.context, encoder.ahead]
    digest = hashlib.blake2b(json.dumps(said, sort_keys=True, default=str).encode(), digest_size=8)
    digest.update(samples.data)
    return digest.hexdigest()


def _pieces(encoder: Encoder, samples: np.ndarray) -> Iterator[np.ndarray]:
    """Sound (n,) -> its rows in pieces, so that memory is bounded; the last frame is filled up with silence."""
    stream, step = EncoderStream(encoder), BATCH * encoder.block * SAMPLES_PER_FRAME
    sound = np.pad(samples, (0, -len(samples) % SAMPLES_PER_FRAME))
    for start in range(0, len(sound), step):
        yield stream.push(sound[start : start + step])
    yield stream.flush()


def _overlap(kernels: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Samples that a stack of convolutions hears beyond its step: 400 − 320 for wav2vec 2.0, 0 for no convolutions."""
    reach = 1 + sum((kernel - 1) * math.prod(strides[:k]) for k, kernel in enumerate(kernels))
    return max(0, reach - math.prod(strides))


def _fingerprint(model: nn.Module) -> str:
    """16 hexadecimal digits of all weights, whatever their names: those change between versions of transformers."""
    parts = [hashlib.blake2b(value.cpu().contiguous().numpy().reshape(-1)).digest()
             for name, value in model.state_dict().items() if NOT_WEIGHTS not in name]
    return hashlib.blake2b(b"".join(sorted(parts)), digest_size=8).hexdigest()


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise TalkheadError("speech encoders need the package transformers, which is not installed: "
                            "pip install 'talkhead[encoders]'") from error


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No reports on weights that a model's file has and the encoder does not need."""
    logging = transformers.utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
