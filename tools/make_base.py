"""The base model that ships: a speech encoder, and a kernel regression on its embedding fitted to tracked people.

    python -m tools.talker_clips talkers/grid_* talkers/hdtf_* -o clips/talkers
    python -m tools.speech_corpora --minutes 640 -o corpora/synthetic
    python -m stage1_audio2lmk.encoders.train_speech_encoder … -o encoder.safetensors    # see its --help
    python -m tools.make_base --speech encoder.safetensors clips/talkers/* -o base.safetensors

Clips of one speaker are told by their names, SPEAKER_sentenceN. Of each clip PER_CLIP frames at most are fitted to, evenly, so
that long recordings of a few people do not outweigh many short ones; the penalty is chosen on speakers left out. One more
speaker is the synthetic actor, whose landmarks are known exactly, with another face, voice and text than the demo's, for which
espeakng-loader must be installed.
"""

from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch

from process_data.actor.identity import make_identity
from process_data.actor.proportions import neutral_landmarks
from process_data.actor.speech import animate, mouth_track
from shared.clip import Clip
from shared.errors import TalkheadError
from shared.landmarks import MOVING, SAMPLES_PER_FRAME
from stage1_audio2lmk.audio.dc_blocker import DCBlocker
from stage1_audio2lmk.checkpoint import save_model
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.dataset import FeatureFn, Recording, load_recording, make_feature_fn, synthetic_silence, weighed
from stage1_audio2lmk.encoders.base import Encoder
from stage1_audio2lmk.encoders.speech_encoder import load_speech_encoder
from stage1_audio2lmk.kernel_ridge import KernelFit, fit_kernel_ridge
from stage1_audio2lmk.model import LandmarkModel, new_model
from stage1_audio2lmk.row_store import person
from stage1_audio2lmk.statistics import set_statistics, statistics
from stage1_audio2lmk.train import SILENCE_FRAMES
from tools.espeak import RETRIEVAL, Espeak
from tools.make_actor_speech import Sentence, make_utterance

PER_CLIP = 400
ACTOR, ACTOR_SEED, VOICE = "actor", 1, "en-us+f3"  # the demo's is seed 0 with another voice
SENTENCES = (
    "Peter bought a map of the harbour before the boats moved away.", "Why would anyone follow a fox through the snow at night?",
    "My mother baked brown bread, poured warm milk, and put the butter by the window.",
    "The old clock in the hall stopped at half past four.",
    "Bring both umbrellas, because the weather may become worse by evening.",
    "You never know what a river carries under the ice.", "Five people from the village voted for a wider bridge.",
    "She sang about the moon, the mountain and a very small bear.",
)
SETTINGS = Stage1Config(mel_terms=False, support_points=2900, val_share=0.01, steps=0)


def thinned(recording: Recording, count: int) -> Recording:
    """The recording with at most `count` of its good frames, evenly, and no validation split."""
    frames = torch.nonzero(recording.good)[:, 0]
    good = torch.zeros_like(recording.good)
    good[frames[torch.linspace(0, len(frames) - 1, min(count, len(frames))).round().long()]] = True
    return replace(recording, good=good, val_start=len(good))


def actor_recording(speaker: int, feature_fn: FeatureFn) -> Recording:
    """The synthetic actor saying SENTENCES, none of which the demo uses. Raises TalkheadError without espeakng-loader."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise TalkheadError("the actor's speech needs espeakng-loader: pip install espeakng-loader") from error
    espeak = Espeak(espeakng_loader.get_library_path(), output=RETRIEVAL, buffer_ms=400, data=espeakng_loader.get_data_path())
    espeak.set_voice(VOICE)
    sound, spoken = make_utterance(espeak, [Sentence(text, 165, 50, 0.4) for text in SENTENCES])
    neutral, count = neutral_landmarks(make_identity(ACTOR_SEED)), len(sound) // SAMPLES_PER_FRAME
    phonemes = [(item["phoneme"].lstrip("',"), item["start"], item["stop"]) for item in spoken]  # without marks of stress
    landmarks = animate(neutral, mouth_track(phonemes, count), np.random.default_rng(ACTOR_SEED))
    moved = (landmarks - neutral)[:, MOVING].reshape(count, -1)
    rows = feature_fn(DCBlocker().pass_through(sound[: count * SAMPLES_PER_FRAME].astype(np.float32)))
    return Recording(ACTOR, torch.from_numpy(rows), torch.from_numpy(moved).float(), torch.ones(count, dtype=torch.bool), speaker,
                     count)


def fit_base(clips: list[Clip], encoder: Encoder, config: Stage1Config = SETTINGS,
             actor: bool = True) -> tuple[LandmarkModel, list[str], KernelFit]:
    """The model, its speakers' names, and the fit with the errors on speakers left out. `actor`: is it a speaker too?"""
    speakers = list(dict.fromkeys(person(clip.info.name) for clip in clips))
    feature_fn = make_feature_fn(encoder, voice=False)
    recordings = [thinned(load_recording(clip, speakers.index(person(clip.info.name)) + 1, config, feature_fn), PER_CLIP)
                  for clip in clips]
    if actor:
        speakers.append(ACTOR)
        recordings.append(thinned(actor_recording(len(speakers), feature_fn), PER_CLIP))
    silence = weighed(synthetic_silence(SILENCE_FRAMES, np.random.default_rng(config.seed), feature_fn), recordings)
    model = new_model(config, len(speakers), encoder.size, transformer=False)
    model.silence.copy_(silence.features[0])
    set_statistics(model, statistics(recordings, recordings, config))
    fit = fit_kernel_ridge(model.kernel, recordings, silence, config)
    model.kernel.load(fit, final=True)
    return model.eval(), speakers, fit


@click.command()
@click.argument("clips", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--speech", required=True, type=click.Path(path_type=Path), help="Encoder from train_speech_encoder.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
def main(clips: tuple[Path, ...], speech: Path, output: Path) -> None:
    """Make the base model from an encoder and clips of people."""
    encoder = load_speech_encoder(speech)
    model, speakers, fit = fit_base([Clip(path) for path in clips], encoder)
    save_model(output, model, speakers, encoder, SETTINGS)
    click.echo(f"{len(speakers)} speakers, {len(fit.support.embedding)} support points, penalty {fit.penalty}; squared error on "
               f"speakers left out by penalty: {fit.errors[0.0]}")


if __name__ == "__main__":
    main()
