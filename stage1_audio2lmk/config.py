"""Settings of stage 1."""

from dataclasses import dataclass

from shared.config import Settings, seed_setting, setting
from stage1_audio2lmk.encoders.speech_encoder import SpeechEncoderConfig, check_heads


@dataclass(frozen=True)
class Stage1Config(Settings):
    """Sizes of the network and how it is trained; times in video frames of 40 ms."""

    dim: int = setting(128, "width of the transformer", 2, 2048)
    layers: int = setting(3, "of the transformer", 0, 48)
    heads: int = setting(4, "of attention; dim is an even multiple of them", 1, 256)
    window: int = setting(40, "frames that attention looks back, a layer", 1, 1000)
    look_ahead: int = setting(2, "frames of future sound, of 40 ms each", 0, 100)
    kernel_past: int = setting(4, "frames of past sound that the kernel path sees", 0, 100)
    centres: int = setting(1500, "moments that the kernel path remembers at most", 97, 20000)
    other_voices: bool = setting(True, "does the kernel path learn from other voices made of the person's own?")
    components: int = setting(16, "principal components of lip and jaw motion", 1, 111)
    dropout: float = setting(0.2, "share of the transformer's values that training hides", 0, 0.9)
    formants: bool = setting(True, "does the transformer hear formants too?")
    speech: SpeechEncoderConfig | None = setting(None, "the default encoder, which comes with a base model")
    encoder: str | None = setting(None, "a speech encoder of the transformers library instead: folder or name on the hub")
    encoder_block: int = setting(5, "frames that it hears at once, see `encoders`", 1, 250)
    encoder_context: int = setting(50, "frames of past sound that it hears before them", 0, 1000)
    encoder_ahead: int = setting(0, "frames of future sound that it hears after them", 0, 250)
    encoder_size: int = setting(64, "of the embedding made from its layers", 1, 2048)
    encoder_tune: int = setting(0, "of its last layers that learn too", 0, 100)

    steps: int = setting(300, "optimiser steps", 0, 10_000_000)
    worthwhile: float = setting(0.03, "a transformer, trained or a base's, is kept only if it lowers the held-out error by this "
                                "share; below 0 it may raise it", -100, 1)
    patience: int = setting(100, "steps without a better held-out error after which training ends", 1, 10_000_000)
    batch: int = setting(8, "windows a step", 1, 4096)
    length: int = setting(75, "frames of a training window", 5, 1000)
    lr: float = setting(1e-3, "learning rate", 0, 1)
    weight_decay: float = setting(0.05, "of AdamW", 0, 10)
    ema: float = setting(0.99, "how slowly the averaged weights follow", 0, 1)
    held_out: float = setting(0.12, "of each clip's end, for choosing the ridge penalty and the best step", 0.01, 0.9)
    check_every: int = setting(25, "steps between two looks at the held-out error", 1, 10_000_000)
    save_every: int = setting(100, "steps between two saves of the resumable state", 1, 10_000_000)
    lip_weight: float = setting(3.0, "of the lips beside the jaw", 0, 1000)
    velocity_weight: float = setting(1.0, "of the error of differences of neighbouring frames", 0, 1000)
    closure_weight: float = setting(1.0, "of the error of the lips' opening", 0, 1000)
    silence_share: float = setting(0.12, "of training windows that hold a made stretch of silence", 0, 1)
    unknown_share: float = setting(0.25, "of training windows whose speaker is hidden", 0, 1)
    noise_db: float = setting(-25.0, "loudest noise that augmentation adds, relative to full scale", -100, 0)
    mask_bands: int = setting(16, "widest band of the spectrum that augmentation hides", 0, 79)
    seed: int = seed_setting()

    def check(self) -> None:
        check_heads(self.dim, self.heads)
