"""Pretrained speech encoders of the transformers library: hidden states, and an embedding of them for each video frame.

These networks look both ways, so they are given the sound in blocks on the file's own clock. For the frames
[k·block, (k + 1)·block) a window starts `context` frames before them and ends `ahead` frames after them, with zeros before the
file's start and after its end, and only the outputs at the block's own frames are kept. Offline and in a stream the windows are
the same, and so are the rows. By default every frame has a window of its own, ten frames of past and two ahead.

Latency: a block's first row waits for the block's last frame and for those ahead, block − 1 + ahead frames after its own
(`TransformersEncoder.look_ahead`), 80 ms by default.

Whisper is made for 30 s, to which its own code pads all sound. Here its layers run on the window alone, whose positions count
from 0, and its log-mel has the fixed floor MEL_FLOOR in place of one that hangs on the loudest sound of those 30 s. What the
feature extractors of the others normalise (the mean and variance of the samples for most large wav2vec 2.0 and WavLM models)
they normalise over the one window, never over the file.

The embedding is a `Projection` of one hidden state, or of the mean of a few, fitted once to a training's sound and kept in its
checkpoint. Layers after the last that it needs are never run.
"""

import hashlib
import importlib
import json
import math
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.config import shown
from shared.errors import TalkheadError
from shared.files import atomic_path
from shared.landmarks import SAMPLE_RATE, SAMPLES_PER_FRAME
from stage1_audio2lmk.config import LARGEST_EMBEDDING
from stage1_audio2lmk.encoders.base import encode_in_pieces

FAMILIES = ("data2vec-audio", "hubert", "sew", "unispeech", "unispeech-sat", "wav2vec2", "wav2vec2-bert",
            "wav2vec2-conformer", "wavlm", "whisper")
TRANSFORMERS = "transformers"  # the kind, in files
WHISPER = "whisper"
MEL_FLOOR = -7.0  # of Whisper's log-mel, log10 of power; speech at full scale reaches about 1, and it is trained on a range of 8
BATCH = 64  # windows that go through the encoder at once
CHUNK = 1000  # rows of cached hidden states that are read at once
HOOKED = threading.Lock()  # held while a model is shortened and listened to
NOT_WEIGHTS = "masked_spec_embed"  # replaces what is masked in pretraining; random where a checkpoint lacks it, and never used


class Projection(nn.Module):
    """Hidden states -> embedding: the mean over `layers`, then principal components of unit total variance.

    `layers`: indices of the hidden states, 0 being what enters the transformer.
    """

    mean: Tensor
    components: Tensor

    def __init__(self, layers: tuple[int, ...], width: int, size: int) -> None:
        super().__init__()
        self.layers, self.size = layers, size
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("components", torch.zeros(size, width))

    def pool(self, states: Tensor) -> Tensor:
        """Hidden states of `layers` (..., len(layers), width), any float type -> their mean (..., width) float32."""
        return states.float().mean(-2)

    def forward(self, pooled: Tensor) -> Tensor:
        """Rows of `pool` (..., width) -> embedding (..., size)."""
        return (pooled - self.mean) @ self.components.T

    @torch.no_grad()
    def fit(self, pooled: Tensor) -> None:
        """Take the principal components of rows of `pool` (n, width), the largest first.

        Where there are fewer than `size`, at most n − 1 or `width`, the other columns of the embedding are 0.
        """
        x = pooled.double()
        mean = x.mean(0)
        _, singular, vt = torch.linalg.svd(x - mean, full_matrices=False)
        keep = min(self.size, int((singular > 1e-4 * singular[0]).sum()))
        total = singular[:keep].square().sum().sqrt() / max(1, len(x) - 1) ** 0.5
        self.mean.copy_(mean)
        self.components.zero_()
        self.components[:keep] = (vt[:keep] / total.clamp_min(1e-12)).to(self.components)


class WhisperLogMel(nn.Module):
    """Samples (n, n_fft − hop + hop·m) -> log-mel (n, mels, m) as Whisper takes it, but for the fixed MEL_FLOOR.

    A column ends with its own `hop` samples, where Whisper's is centred 2.5 ms later and so would see beyond the last of them.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, extractor: Any) -> None:
        super().__init__()
        self.size, self.hop = extractor.n_fft, extractor.hop_length
        self.register_buffer("window", torch.hann_window(self.size))
        self.register_buffer("filters", torch.from_numpy(np.asarray(extractor.mel_filters, np.float32)))

    def forward(self, samples: Tensor) -> Tensor:
        power = torch.fft.rfft(samples.unfold(-1, self.size, self.hop) * self.window).abs().square()
        return (((power @ self.filters).clamp_min(10**MEL_FLOOR).log10() + 4) / 4).transpose(1, 2)


class TransformersEncoder(nn.Module):
    """An `Encoder` (see `base`) of the transformers library, frozen, which reads the samples.

    `n_layers` counts the hidden states, the first being what enters the transformer; `width` is theirs. `projection` is None
    until it is fitted or loaded, and until then there are hidden states only. Never in training mode.
    """

    def __init__(self, name: str, model: nn.Module, extractor: Any, *, block: int = 1, context: int = 10,
                 ahead: int = 2) -> None:
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
        self.family, self.n_layers, self.width = config.model_type, config.num_hidden_layers + 1, config.hidden_size
        self.look_ahead = block - 1 + ahead
        self.projection: Projection | None = None
        kernels: Sequence[int]
        strides: Sequence[int]
        if self.family == WHISPER:
            self.log_mel = WhisperLogMel(extractor)
            kernels, strides = (extractor.n_fft,), (extractor.hop_length,)
            longest = config.max_source_positions * 2 * extractor.hop_length  # the second convolution has a step of 2
        else:
            kernels, strides = getattr(config, "conv_kernel", ()), getattr(config, "conv_stride", ())
            longest = math.inf
        # a convolution wider than its step sees that much past of the window's start, so that all outputs end in their frames
        reach = _reach(kernels, strides)
        self.lead = max(0, reach - math.prod(strides))
        self.window = self.lead + (context + block + ahead) * SAMPLES_PER_FRAME  # samples
        given = f"context {context}, block {block} and ahead {ahead} are"
        if self.window < reach:
            raise TalkheadError(f"{name} hears {reach / SAMPLE_RATE:.3g} s of sound at once, but {given} "
                                f"{self.window / SAMPLE_RATE:.3g} s; give it more context")
        if self.window - self.lead > longest:
            raise TalkheadError(f"{name} takes {longest / SAMPLE_RATE:g} s of sound at most, but {given} "
                                f"{(self.window - self.lead) / SAMPLE_RATE:g} s")
        self.weights = _fingerprint(model)
        self.train(False)

    def train(self, mode: bool = True) -> "TransformersEncoder":
        """Stay in evaluation mode, whatever the module around it does."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def fitted(self) -> Projection:
        """The projection. Raises TalkheadError before it is fitted."""
        if self.projection is None:
            raise TalkheadError(f"{self.name} has no projection yet; fit one to its hidden states")
        return self.projection

    @property
    def size(self) -> int:
        """Width of the embedding."""
        return self.fitted.size

    def info(self) -> dict[str, Any]:
        """What `load_encoder_of` needs, and the projection's sizes; `weights` is their fingerprint."""
        sizes = {"layers": list(self.projection.layers), "size": self.projection.size} if self.projection is not None else {}
        return {"kind": TRANSFORMERS, **{name: getattr(self, name) for name in (
            "name", "family", "weights", "block", "context", "ahead")}, **sizes}

    @property
    def every(self) -> tuple[int, ...]:
        """Indices of all hidden states."""
        return tuple(range(self.n_layers))

    def forward(self, windows: Tensor, layers: Sequence[int]) -> Tensor:
        """windows (n, self.window) -> hidden states `layers` of their blocks (n, block, len(layers), width)."""
        states = (self._whisper if self.family == WHISPER else self._waveform)(windows.to(self.device), max(layers))
        frames = self.context + self.block + self.ahead
        kept = [F.adaptive_avg_pool1d(states[layer].transpose(1, 2), frames)[..., self.context : self.context + self.block]
                for layer in layers]
        return torch.stack(kept, 1).permute(0, 3, 1, 2)

    def _whisper(self, windows: Tensor, last: int) -> list[Tensor]:
        """Hidden states (n, tokens, width) 0 to `last`, of its encoder without its padding to 30 s."""
        model: Any = self.model
        x = F.gelu(model.conv2(F.gelu(model.conv1(self.log_mel(windows))))).transpose(1, 2)
        states = [x + model.embed_positions.weight[: x.shape[1]]]
        for layer in model.layers[:last]:
            states.append(_first(layer(states[-1], None)))
        if last == len(model.layers):
            states[-1] = model.layer_norm(states[-1])
        return states

    def _waveform(self, windows: Tensor, last: int) -> list[Tensor]:
        """Hidden states (n, tokens, width) 0 to `last`, of a model made for sound of any length."""
        extracted = self.extractor(list(windows.cpu().numpy()), sampling_rate=SAMPLE_RATE, return_tensors="pt")
        inputs = extracted[self.model.main_input_name].to(self.device)
        with HOOKED, _shortened(self.model, max(1, last)) as states:
            self.model(inputs)
        return states[: last + 1]

    def hidden_states(self, samples: np.ndarray, layers: Sequence[int] | None = None) -> Iterator[np.ndarray]:
        """Sound (640·T,) at 16 kHz -> hidden states (m, len(layers), width) float32, T rows in all, a piece at a time.

        All of them if `layers` is None.
        """
        stream, step = HiddenStateStream(self, layers), BATCH * self.block * SAMPLES_PER_FRAME
        for start in range(0, len(samples), step):
            yield stream.push(samples[start : start + step])
        yield stream.flush()

    def encode(self, samples: np.ndarray, features: np.ndarray) -> np.ndarray:
        """See `base.Encoder`; reads the samples."""
        return encode_in_pieces(self.stream(), samples, features)

    def stream(self) -> "TransformersEncoderStream":
        """See `base.Encoder`."""
        return TransformersEncoderStream(self)


class HiddenStateStream:
    """Frames of sound in pieces of any number -> their hidden states, with a state that does not grow."""

    def __init__(self, encoder: TransformersEncoder, layers: Sequence[int] | None = None) -> None:
        """`layers`: which hidden states, all if None."""
        self.encoder, self.layers = encoder, encoder.every if layers is None else tuple(layers)
        self.sound = np.zeros(encoder.lead + encoder.context * SAMPLES_PER_FRAME, np.float32)  # the next window's

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Sound (640·t,), t ≥ 0 -> hidden states (m, len(layers), width) float32 of the blocks that are now complete."""
        if len(samples) % SAMPLES_PER_FRAME:
            raise ValueError(f"expected a multiple of {SAMPLES_PER_FRAME} samples, found {len(samples)}")
        self.sound = np.concatenate([self.sound, samples], dtype=np.float32)
        encoder, step = self.encoder, self.encoder.block * SAMPLES_PER_FRAME
        rows = [np.zeros((0, len(self.layers), encoder.width), np.float32)]
        count = max(0, len(self.sound) - encoder.window + step) // step
        if count:
            windows = torch.from_numpy(self.sound).unfold(0, encoder.window, step)
            with torch.inference_mode():
                rows += [encoder(part, self.layers).flatten(0, 1).cpu().numpy() for part in windows.split(BATCH)]
        self.sound = self.sound[count * step :].copy()
        return np.concatenate(rows)

    def flush(self) -> np.ndarray:
        """The rows (m, len(layers), width) still to come, silence following the sound."""
        encoder = self.encoder
        frames = (len(self.sound) - encoder.lead) // SAMPLES_PER_FRAME - encoder.context
        return self.push(np.zeros((-frames % encoder.block + encoder.ahead) * SAMPLES_PER_FRAME))[:frames]


class TransformersEncoderStream:
    """See `base.EncoderStream`. Rows come a block at a time."""

    def __init__(self, encoder: TransformersEncoder) -> None:
        self.projection = encoder.fitted
        self.states = HiddenStateStream(encoder, self.projection.layers)

    def push(self, samples: np.ndarray, features: np.ndarray) -> np.ndarray:
        """See `base.EncoderStream`."""
        return project(self.projection, self.states.push(samples))

    def flush(self) -> np.ndarray:
        """See `base.EncoderStream`."""
        return project(self.projection, self.states.flush())


class CachedEncoder:
    """An `Encoder` whose `encode` keeps hidden states in files of `folder`, see `cached_hidden_states`."""

    def __init__(self, encoder: TransformersEncoder, folder: Path) -> None:
        self.encoder, self.folder, self.look_ahead = encoder, folder, encoder.look_ahead

    @property
    def size(self) -> int:
        """Width of the embedding."""
        return self.encoder.size

    def info(self) -> dict[str, Any]:
        """See `TransformersEncoder.info`."""
        return self.encoder.info()

    def encode(self, samples: np.ndarray, features: np.ndarray) -> np.ndarray:
        """See `base.Encoder`."""
        projection = self.encoder.fitted
        return project(projection, cached_hidden_states(self.encoder, samples, self.folder, projection.layers))

    def stream(self) -> TransformersEncoderStream:
        """See `base.Encoder`."""
        return self.encoder.stream()


@torch.inference_mode()
def project(projection: Projection, states: np.ndarray) -> np.ndarray:
    """Hidden states of its layers (n, len(layers), width), maybe mapped from a file -> embedding (n, size) float32."""
    rows = [np.zeros((0, projection.size), np.float32)]
    for start in range(0, len(states), CHUNK):
        part = torch.from_numpy(states[start : start + CHUNK].copy()).to(projection.mean.device)
        rows.append(projection(projection.pool(part)).cpu().numpy())
    return np.concatenate(rows)


def load_encoder(name: str, device: torch.device | str, *, block: int = 1, context: int = 10,
                 ahead: int = 2) -> TransformersEncoder:
    """A folder or a name on the Hugging Face hub -> its encoder without a projection, in float32. Raises TalkheadError.

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
        raise TalkheadError(f"{name} takes sound at {extractor.sampling_rate} Hz, but stage 1 works at {SAMPLE_RATE} Hz")
    model = model.encoder if config.model_type == WHISPER else model
    return TransformersEncoder(name, model, extractor, block=block, context=context, ahead=ahead).to(device)


def load_encoder_of(info: dict[str, Any], device: torch.device | str, name: str | None = None) -> TransformersEncoder:
    """The encoder that `TransformersEncoder.info` described, by its own name or from elsewhere, with an empty projection.

    Raises TalkheadError if it is another, or for an `info` that is none.
    """
    _check_info(info)
    encoder = load_encoder(name or info["name"], device, block=info["block"], context=info["context"], ahead=info["ahead"])
    if encoder.weights != info["weights"]:
        raise TalkheadError(f"{encoder.name} is not the encoder that this model was trained with: its weights have the "
                            f"fingerprint {encoder.weights}, expected {info['weights']} of {info['name']}")
    if not all(0 <= layer < encoder.n_layers for layer in info["layers"]):
        raise TalkheadError(f"{encoder.name} has the hidden states 0 to {encoder.n_layers - 1}, found {shown(info['layers'])}")
    encoder.projection = Projection(tuple(info["layers"]), encoder.width, info["size"]).to(device)
    return encoder


def _check_info(info: dict[str, Any]) -> None:
    kinds = {"name": str, "weights": str, "block": int, "context": int, "ahead": int, "layers": list, "size": int}
    for key, kind in kinds.items():
        if not isinstance(info.get(key), kind):
            raise TalkheadError(f"the description of an encoder should have {key!r}, a {kind.__name__}, found "
                                f"{shown(info.get(key))}")
    sized = 1 <= info["size"] <= LARGEST_EMBEDDING
    if not sized or not info["layers"] or not all(type(layer) is int for layer in info["layers"]):
        raise TalkheadError(f"an encoder's description names no layers or an odd size, found {shown(info['layers'])} and "
                            f"{shown(info['size'])}")


def cached_hidden_states(encoder: TransformersEncoder, samples: np.ndarray, folder: Path,
                         layers: Sequence[int] | None = None) -> np.ndarray:
    """Hidden states of sound (640·T,) by way of a file in `folder`, written if missing: (T, len(layers), width) float16.

    `layers`: which of them, all if None; a file of all serves for any. The array is mapped from the file, not read, unless the
    file holds more than is asked for. A damaged file is written anew. The file's name says which encoder, windows, layers and
    samples it belongs to; what belongs to others stays and may be deleted. Values beyond float16 are clipped. Raises
    TalkheadError if the disk refuses.
    """
    samples = np.ascontiguousarray(samples, np.float32)
    wanted, frames = encoder.every if layers is None else tuple(layers), len(samples) // SAMPLES_PER_FRAME
    if not frames:
        return np.zeros((0, len(wanted), encoder.width), np.float16)
    slug = re.sub(r"[^\w.-]+", "-", Path(encoder.name).name) or "encoder"
    every, path = (folder / f"{slug}-{_cache_key(encoder, samples, some)}.npy" for some in (encoder.every, wanted))
    rows = _map(every, (frames, encoder.n_layers, encoder.width))
    if rows is not None:
        return rows if wanted == encoder.every else rows[:, list(wanted)]
    shape = frames, len(wanted), encoder.width
    rows = _map(path, shape)
    if rows is None:
        limit = np.finfo(np.float16).max
        with atomic_path(path) as partial, open(partial, "wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
            for piece in encoder.hidden_states(samples, wanted):
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


def _cache_key(encoder: TransformersEncoder, samples: np.ndarray, layers: tuple[int, ...]) -> str:
    config: Any = encoder.model.config
    settings = {key: value for key, value in config.to_diff_dict().items()
                if key not in ("transformers_version", "_name_or_path", "architectures", "dtype")}
    parts = [encoder.weights, settings, encoder.extractor.to_dict(), encoder.block, encoder.context, encoder.ahead,
             MEL_FLOOR, layers]
    digest = hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=8)
    digest.update(samples.data)
    return digest.hexdigest()


def _reach(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Samples that one output of a stack of convolutions sees: 400 for wav2vec 2.0, 1 for no convolutions."""
    return 1 + sum((kernel - 1) * math.prod(strides[:k]) for k, kernel in enumerate(kernels))


@contextmanager
def _shortened(model: nn.Module, count: int) -> Iterator[list[Tensor]]:
    """Within it the model has its first `count` ≥ 1 layers only; a call of it fills the list with their input and outputs."""
    inner: Any = model.get_submodule("encoder")
    states: list[Tensor] = []
    every = inner.layers
    inner.layers = every[:count]
    hooks = [inner.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: states.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True)]
    hooks += [layer.register_forward_hook(lambda _, args, output: states.append(_first(output))) for layer in inner.layers]
    try:
        yield states
    finally:
        inner.layers = every
        for hook in hooks:
            hook.remove()


def _first(output: Any) -> Tensor:
    """What a layer gives, alone or first of several, depending on the family and the version of transformers."""
    return output[0] if isinstance(output, tuple) else output


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
