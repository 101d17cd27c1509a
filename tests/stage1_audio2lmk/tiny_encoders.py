"""Speech encoders of the transformers library, of every kind, tiny and with random weights."""

from pathlib import Path

import torch

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
WAVE = SMALL | {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
WHISPER = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
           "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "vocab_size": 20, "max_source_positions": 150, "pad_token_id": 0,
           "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
KINDS = {
    "wav2vec2": ("Wav2Vec2", WAVE, "Wav2Vec2FeatureExtractor", {}),
    "hubert": ("Hubert", WAVE | {"feat_extract_norm": "layer", "do_stable_layer_norm": True}, "Wav2Vec2FeatureExtractor", {}),
    "wavlm": ("WavLM", WAVE, "Wav2Vec2FeatureExtractor", {"do_normalize": False}),
    "whisper": ("Whisper", WHISPER, "WhisperFeatureExtractor", {"chunk_length": 3}),
    "wav2vec2-bert": ("Wav2Vec2Bert", SMALL, "SeamlessM4TFeatureExtractor", {}),
    "wav2vec2-conformer": ("Wav2Vec2Conformer", WAVE, "Wav2Vec2FeatureExtractor", {}),
    "unispeech": ("UniSpeech", WAVE, "Wav2Vec2FeatureExtractor", {}),
    "unispeech-sat": ("UniSpeechSat", WAVE, "Wav2Vec2FeatureExtractor", {}),
    "data2vec-audio": ("Data2VecAudio", WAVE, "Wav2Vec2FeatureExtractor", {}),
    "sew": ("SEW", WAVE | {"conv_dim": [8] * 13}, "Wav2Vec2FeatureExtractor", {}),
}


def save_models(root: Path, *kinds: str) -> Path:
    """Save them as transformers does, each in a folder of `root` with the kind's name; returns `root`."""
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for kind in kinds:
            name, settings, extractor, options = KINDS[kind]
            model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**settings))
            for parameter in model.parameters():  # as they start, layers hardly differ and biases are zero
                parameter.data += 0.1 * torch.randn_like(parameter)
            model.save_pretrained(root / kind)
            getattr(transformers, extractor)(**options).save_pretrained(root / kind)
    return root
