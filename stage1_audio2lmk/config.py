"""Settings of stage 1."""

from dataclasses import dataclass

from stage1_audio2lmk.speech_encoder import SpeechEncoderConfig


@dataclass(frozen=True)
class Stage1Config:
    """Sizes of the network and how it is trained; times in video frames of 40 ms."""

    dim: int = 128
    layers: int = 3
    heads: int = 4
    window: int = 40  # frames that attention looks back, a layer
    look_ahead: int = 2  # frames of future sound, 80 ms
    kernel_past: int = 4  # frames of past sound that the kernel path sees
    centres: int = 1500  # moments that the kernel path remembers at most
    other_voices: bool = True  # does the kernel path learn from other voices made of the person's own?
    components: int = 16  # principal components of lip and jaw motion
    dropout: float = 0.2
    formants: bool = True
    speech: SpeechEncoderConfig | None = None  # the default encoder, which comes with a base model
    encoder: str | None = None  # a speech encoder of the transformers library instead: folder or name on the hub
    encoder_block: int = 5  # frames that it hears at once, see `encoders`
    encoder_context: int = 50  # frames of past sound that it hears before them
    encoder_ahead: int = 0  # frames of future sound that it hears after them
    encoder_size: int = 64  # of the embedding made from its layers
    encoder_tune: int = 0  # of its last layers that learn too

    steps: int = 300
    worthwhile: float = 0.03  # a transformer, trained or a base's, is kept only if it lowers the held-out error by this share
    patience: int = 100  # steps without a better held-out error after which training ends
    batch: int = 8
    length: int = 75  # frames of a training window
    lr: float = 1e-3
    weight_decay: float = 0.05
    ema: float = 0.99
    held_out: float = 0.12  # of each clip's end, for choosing the ridge penalty and the best step
    check_every: int = 25
    save_every: int = 100
    lip_weight: float = 3.0
    velocity_weight: float = 1.0
    closure_weight: float = 1.0
    silence_share: float = 0.12  # of training windows that hold a made stretch of silence
    unknown_share: float = 0.25  # of training windows whose speaker is hidden
    noise_db: float = -25.0  # loudest noise that augmentation adds, relative to full scale
    mask_bands: int = 16  # widest band of the spectrum that augmentation hides
    seed: int = 0
