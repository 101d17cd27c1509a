r"""The base model that ships: transformer pretrained on all clips, then the kernel regression fitted to tracked people.

    talkhead process hdtf1.mp4 clips/people/hdtf1    # and the others
    python -m tools.speech_corpora -o corpora/synthetic
    python -m stage1_audio2lmk.encoders.train_speech_encoder LibriSpeech talkers --synthetic corpora/synthetic \
        --test 8 --test 61 --test 62 --test 63 --minutes 10 --steps 100000 -o encoder.safetensors
    python -m tools.made_faces LibriSpeech --test 8 --test 61 --test 62 --test 63 -o clips/read
    python tools/make_base.py --speech encoder.safetensors --made clips/read --tracked clips/people -o base.safetensors

Rules teach the transformer what every sound looks like; the few seconds of real people correct how far lips really go. On
those alone it would learn nothing, and rules alone move nobody's lips as people do (EXPERIMENTS.md).
"""

import tempfile
from pathlib import Path

import click

from shared.clip import Clip
from shared.training import pick_device
from stage1_audio2lmk.checkpoint import load_model, save_model
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.model import LandmarkModel
from stage1_audio2lmk.pretrain import PretrainConfig, pretrain
from stage1_audio2lmk.train import train


def without_prior(model: LandmarkModel) -> LandmarkModel:
    """Kernel + share · (a transformer about rest) as one model: the share goes into the transformer's basis, rests add up.

    `model` has no transformer of its own, and its prior, fresh from pretraining, has no support points.
    """
    prior, kernel = model.prior, model.kernel
    assert model.transformer is None and (prior is None or not len(prior.kernel.support_mel))
    if prior is not None and prior.transformer is not None:
        projector = model.share * kernel.projector()
        kernel.rest += prior.kernel.rest @ projector
        prior.transformer.basis.copy_(prior.transformer.basis @ projector)
    merged = LandmarkModel(kernel, prior.transformer if prior is not None else None)
    merged.silence.copy_(model.silence)
    return merged


@click.command()
@click.option("--speech", required=True, type=click.Path(path_type=Path), help="Encoder from train_speech_encoder.")
@click.option("--made", required=True, type=click.Path(path_type=Path), help="Folder of clips of actors that follow rules.")
@click.option("--tracked", required=True, type=click.Path(path_type=Path), help="Folder of clips of people.")
@click.option("--steps", default=1200, show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
def main(speech: Path, made: Path, tracked: Path, steps: int, device: str, output: Path) -> None:
    """Make the base model from an encoder and clips."""
    people, actors = ([Clip(path) for path in sorted(folder.iterdir())] for folder in (tracked, made))
    where, settings = pick_device(device), PretrainConfig(steps=steps, voices=2, layers=2)
    with tempfile.TemporaryDirectory() as scratch:
        learned = Path(scratch) / "learned.safetensors"
        print(pretrain([*people, *actors], learned, config=settings, device=where, state_dir=Path(scratch) / "pretrain",
                       speech=speech))
        solved = Path(scratch) / "solved.safetensors"
        print(train(people, solved, config=Stage1Config(steps=0), device=where, state_dir=Path(scratch) / "solve", base=learned))
        model, _, encoder = load_model(solved, "cpu")
        save_model(output, without_prior(model), load_model(learned, "cpu").speakers, encoder, settings)


if __name__ == "__main__":
    main()
