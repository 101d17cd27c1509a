"""What the default speech encoder learns to predict: windowed hidden states of Whisper encoders (Radford et al., 2022).

Every video frame has a window of its own, PAST frames before it and AHEAD after, as far as the student hears ahead, and
stands at the same position in each. From the states of a layer come a few principal components, the targets.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.config import shown
from shared.errors import TalkheadError
from shared.files import sha256
from shared.landmarks import SAMPLES_PER_FRAME
from shared.progress import progress
from stage1_audio2lmk.encoders.transformers_encoder import load_encoder

PAST, AHEAD = 25, 2  # frames
WINDOW = PAST + 1 + AHEAD
MELS_A_FRAME, TOKENS_A_FRAME = 4, 2
WINDOWS = 2048  # that go through a teacher at once
TOGETHER = 8192  # frames of recordings whose mel is computed at once
COMPONENTS = 96  # of a teacher's states


class Teacher:
    """The first `layer` layers of a Whisper encoder."""

    def __init__(self, name: str, layer: int, device: torch.device) -> None:
        """`name`: folder of a checkpoint of the transformers library, or its name on the Hugging Face hub.

        Raises TalkheadError where it holds no Whisper with so many layers.
        """
        loaded = load_encoder(name, device, block=1, context=PAST, ahead=AHEAD)
        model: Any = loaded.model
        if loaded.family != "whisper":
            raise TalkheadError(f"{name} is a model of the kind {loaded.family!r}; a teacher must be a Whisper")
        if not 1 <= layer <= len(model.layers):
            raise TalkheadError(f"{name} has the layers 1 to {len(model.layers)}, found {layer}")
        self.name, self.layer, self.device = Path(name).resolve().name if Path(name).is_dir() else name, layer, device
        self.weights = _weights_of(name)
        self.filters = torch.from_numpy(loaded.extractor.mel_filters).float().to(device)  # (201, mels)
        model.layers, model.layer_norm = model.layers[:layer], nn.Identity()
        model.config.max_source_positions = WINDOW * TOKENS_A_FRAME
        model.embed_positions = nn.Embedding.from_pretrained(model.embed_positions.weight[: WINDOW * TOKENS_A_FRAME])
        self.model = model.eval()

    def info(self) -> dict[str, Any]:
        """What a file records: name, layer, SHA-256 of the weights' file."""
        return {"name": self.name, "layer": self.layer, "sha256": self.weights}

    @torch.no_grad()
    def rows(self, sounds: Sequence[Tensor]) -> list[Tensor]:
        """Recordings (640·T,) on the device -> for each the mean states of every frame's two tokens (T, width) half."""
        counts = torch.tensor([len(sound) // SAMPLES_PER_FRAME for sound in sounds])
        padded = nn.utils.rnn.pad_sequence([sound.float() for sound in sounds], batch_first=True)
        mel = whisper_mel(F.pad(padded, (PAST * SAMPLES_PER_FRAME, AHEAD * SAMPLES_PER_FRAME)), self.filters)
        windows = mel.unfold(2, WINDOW * MELS_A_FRAME, MELS_A_FRAME)  # (B, mels, frames, 4·WINDOW), a view
        which = (torch.arange(windows.shape[2]) < counts[:, None]).nonzero().to(self.device)
        found, own = [], slice(PAST * TOKENS_A_FRAME, (PAST + 1) * TOKENS_A_FRAME)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            for part in which.split(WINDOWS):
                states = self.model(windows[part[:, 0], :, part[:, 1]]).last_hidden_state
                found.append(states[:, own].float().mean(1).half())
        return list(torch.cat(found).split(counts.tolist()))


def parse_teacher(text: str) -> tuple[str, int]:
    """"FOLDER:LAYER" -> both. Raises TalkheadError."""
    name, _, layer = text.rpartition(":")
    if not name or not layer.isdecimal():
        raise TalkheadError(f"a teacher is FOLDER:LAYER, found {shown(text)}")
    return name, int(layer)


def whisper_mel(sound: Tensor, filters: Tensor) -> Tensor:
    """sound (B, 160·n), filters (201, mels) -> (B, mels, n), as transformers' WhisperFeatureExtractor of each, unpadded."""
    window = torch.hann_window(400, device=sound.device)
    power = torch.stft(sound, 400, 160, window=window, return_complex=True)[..., :-1].abs().square()
    level = (filters.T @ power).clamp_min(1e-10).log10()
    return (torch.maximum(level, level.amax((1, 2), keepdim=True) - 8) + 4) / 4


def target_basis(rows: Tensor, count: int = COMPONENTS) -> tuple[Tensor, Tensor]:
    """States (n, width) -> mean (width,) and matrix (width, ≤ count): principal components, scaled by their deviation^−½.

    Small components say what is spoken as well as large ones do, but noise too, hence half whitened. Unit total variance.
    """
    rows = rows.double()
    mean = rows.mean(0)
    centred = rows - mean
    variance, vectors = torch.linalg.eigh(centred.T @ centred / len(rows))
    variance, vectors = variance.flip(0)[:count], vectors.flip(1)[:, :count]
    real = variance > 1e-8 * variance[0]
    variance, vectors = variance[real], vectors[:, real]
    return mean.float(), (vectors * variance**-0.25 / variance.sqrt().sum().sqrt()).float()


def by_length(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Indices of recordings of about one length, `most` of that in all or a single one."""
    group: list[int] = []
    for k in sorted(range(len(lengths)), key=lambda k: lengths[k]):
        if group and lengths[k] * (len(group) + 1) > most:
            yield group
            group = []
        group.append(k)
    if group:
        yield group


def targets_of(teachers: list[Teacher], sounds: Sequence[Tensor], sample: list[int], quiet: bool = False) -> Tensor:
    """Recordings (640·T,) each -> all teachers' targets (sum of T, targets) half, side by side, recordings one after the other.

    The principal components are those of the recordings `sample`.
    """
    lengths = [len(sound) // SAMPLES_PER_FRAME for sound in sounds]

    def rows(teacher: Teacher, chosen: list[int]) -> dict[int, Tensor]:
        return dict(zip(chosen, teacher.rows([sounds[k] for k in chosen])))

    bases = []
    for teacher in teachers:
        found = [rows(teacher, [sample[k] for k in some]) for some in by_length([lengths[k] for k in sample], TOGETHER)]
        bases.append(target_basis(torch.cat([x for part in found for x in part.values()])))
    targets: list[Tensor] = [torch.empty(0)] * len(sounds)
    with progress(sum(lengths), "targets", quiet=quiet, unit="frames") as bar:
        for chosen in by_length(lengths, TOGETHER):
            each = [rows(teacher, chosen) for teacher in teachers]
            for k in chosen:
                parts = [(states[k].float() - mean) @ matrix for states, (mean, matrix) in zip(each, bases)]
                targets[k] = torch.cat(parts, 1).half()
                bar.update(lengths[k])
    return torch.cat(targets)


def _weights_of(name: str) -> str:
    from transformers.utils import cached_file

    try:
        file = cached_file(name, "model.safetensors")
    except OSError as error:
        raise TalkheadError(f"{name}: a teacher's weights must lie in one file, model.safetensors") from error
    assert file is not None  # else it has raised
    return sha256(file)
