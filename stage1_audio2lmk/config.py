"""Settings of stage 1: sizes of its parts, and how they are fitted and trained. Times are in video frames of 40 ms."""

from dataclasses import dataclass

from shared.config import Settings, seed_setting, setting
from shared.errors import TalkheadError

LARGEST_EMBEDDING = 2048  # columns


def check_heads(dim: int, heads: int) -> None:
    """Raise TalkheadError unless attention of width `dim` can be shared by its `heads`: rotary positions turn pairs."""
    if dim % (2 * heads):
        raise TalkheadError(f"dim should be a multiple of twice the heads, {2 * heads}, found {dim}")


@dataclass(frozen=True)
class KernelConfig(Settings):
    """What a kernel compares, as a checkpoint records it."""

    components: int = setting(16, "principal components that the regressor predicts", 1, 111)
    past: int = setting(4, "frames of past log-mel", 0, 100)
    look_ahead: int = setting(2, "frames of future log-mel", 0, 100)
    size: int = setting(0, "width of the embedding, 0 for none", 0, LARGEST_EMBEDDING)
    mel_terms: bool = setting(True, "does log-mel take part?")
    share: float = setting(1.0, "weight of the embedding's term", 0, 100)
    sharpness: float = setting(1.0, "factor on the embeddings' squared distance", 0, 1e6)

    def check(self) -> None:
        if not self.mel_terms and not (self.size and self.share):
            raise TalkheadError("a kernel needs log-mel or an embedding to compare: without a speech encoder mel_terms should be "
                                "true")


@dataclass(frozen=True)
class TransformerConfig(Settings):
    """Sizes of a landmark transformer, as a checkpoint records them."""

    components: int = setting(16, "principal components that it predicts", 1, 111)
    dim: int = setting(128, "width", 2, 2048)
    layers: int = setting(3, "blocks", 0, 48)
    heads: int = setting(4, "of attention", 1, 256)
    window: int = setting(40, "frames that attention looks back, a layer", 1, 1000)
    dropout: float = setting(0.2, "share of the values that training hides", 0, 0.9)
    look_ahead: int = setting(2, "frames of future features", 0, 100)
    formants: bool = setting(True, "are formants an input?")
    size: int = setting(0, "width of the embedding, 0 for log-mel instead", 0, LARGEST_EMBEDDING)
    speakers: int = setting(1, "speakers that it knows", 1, 1_000_000)

    def check(self) -> None:
        check_heads(self.dim, self.heads)


@dataclass(frozen=True)
class Stage1Config(Settings):
    """Sizes of the model and how it is fitted and trained."""

    dim: int = setting(128, "width of the transformer", 2, 2048)
    layers: int = setting(3, "of the transformer", 0, 48)
    heads: int = setting(4, "of attention; dim is an even multiple of them", 1, 256)
    window: int = setting(40, "frames that attention looks back, a layer", 1, 1000)
    dropout: float = setting(0.2, "share of the transformer's values that training hides", 0, 0.9)
    formants: bool = setting(True, "are formants an input of the transformer?")
    look_ahead: int = setting(2, "frames of future sound, of 40 ms each", 0, 100)
    components: int = setting(16, "principal components of lip and jaw motion", 1, 111)
    kernel_past: int = setting(4, "frames of past sound that the kernel compares", 0, 100)
    support_points: int = setting(1500, "moments of the training sound that the kernel regression keeps, at most", 289, 20000)
    mel_terms: bool = setting(True, "does the kernel compare log-mel, or the embedding alone?")
    embedding_share: float = setting(1.0, "weight of the embedding's term in the kernel", 0, 100)
    choose_embedding: bool = setting(True, "may inner folds choose another weight of the embedding's term?")
    embedding_sharpness: float = setting(1.0, "factor on the squared distance of embeddings in the kernel", 0, 1e6)
    voice_augmentation: bool = setting(True, "is the kernel regression also fitted to shifted copies of the person's voice?")
    encoder: str | None = setting(None, "a speech encoder of the transformers library: folder or name on the hub")
    encoder_block: int = setting(1, "frames that it encodes at once", 1, 250)
    encoder_context: int = setting(10, "frames of past sound that it sees before them", 0, 1000)
    encoder_ahead: int = setting(2, "frames of future sound that it sees after them", 0, 250)
    encoder_size: int = setting(64, "width of the embedding made of a hidden state", 1, LARGEST_EMBEDDING)

    steps: int = setting(0, "optimiser steps of the transformer; 0 leaves it out", 0, 10_000_000)
    min_gain: float = setting(0.03, "the transformer is kept only if it lowers the validation error by this share; below 0 it "
                              "may raise it", -100, 1)
    patience: int = setting(100, "steps without a better validation error after which training ends", 1, 10_000_000)
    batch: int = setting(8, "windows a step", 1, 4096)
    length: int = setting(75, "frames of a training window", 5, 1000)
    lr: float = setting(1e-3, "learning rate", 0, 1)
    weight_decay: float = setting(0.05, "of AdamW", 0, 10)
    ema: float = setting(0.99, "decay of the averaged weights", 0, 1)
    val_share: float = setting(0.12, "share of each clip, at its end, that is the validation split", 0.01, 0.9)
    check_every: int = setting(25, "steps between two validations", 1, 10_000_000)
    save_every: int = setting(100, "steps between two saves of the resumable state", 1, 10_000_000)
    lip_weight: float = setting(3.0, "weight of a lip point relative to a jaw point", 0, 1000)
    velocity_weight: float = setting(1.0, "weight of the loss on differences of neighbouring frames", 0, 1000)
    closure_weight: float = setting(1.0, "weight of the loss on the lip opening", 0, 1000)
    silence_share: float = setting(0.12, "share of training windows that hold synthetic silence", 0, 1)
    unknown_share: float = setting(0.25, "share of training windows whose speaker is hidden", 0, 1)
    noise_db: float = setting(-25.0, "loudest noise that augmentation adds, relative to full scale", -100, 0)
    mask_bands: int = setting(16, "widest band of the spectrum that augmentation hides", 0, 79)
    seed: int = seed_setting()

    def check(self) -> None:
        check_heads(self.dim, self.heads)

    def kernel(self, size: int) -> KernelConfig:
        """The kernel for an embedding of `size` columns, 0 for none."""
        return KernelConfig(self.components, self.kernel_past, self.look_ahead, size, self.mel_terms, self.embedding_share,
                            self.embedding_sharpness)

    def transformer(self, size: int, speakers: int) -> TransformerConfig:
        """The transformer for an embedding of `size` columns, 0 for none."""
        return TransformerConfig(self.components, self.dim, self.layers, self.heads, self.window, self.dropout, self.look_ahead,
                                 self.formants, size, speakers)
