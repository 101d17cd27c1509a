"""From a video to an avatar file in one go: check, process, three trainings, a measurement, one file, a report."""

import dataclasses
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from process_data.check import VideoCheck, check_video
from process_data.config import ProcessConfig
from process_data.pipeline import CLUTTER, process
from shared.avatar import PARTS, Avatar
from shared.clip import Clip
from shared.config import Settings, config_to_dict
from shared.consent import Consent
from shared.errors import TalkheadError
from shared.files import read_json, refuse_existing, refuse_inputs, remove, sha256, write_json
from shared.lock import lock_folder, lock_output
from shared.media.video_io import probe
from shared.resume import MARKER
from shared.training import pick_device
from stage1_audio2lmk.checkpoint import SHIPPED_BASE
from stage1_audio2lmk.config import Stage1Config
from stage2_gaussian.config import Stage2Config
from talkhead.avatar_file import pack
from talkhead.held_out import FIGURES, measure_held_out
from talkhead.steps import Record, Steps, fingerprint
from talkhead.train_report import write_train_report
from talkhead.training import finetune, train_head, train_torso
from torso_styleunet.config import TorsoConfig

RECORD = "train.json"
CHECK, PROCESS, FINETUNE, HEAD, TORSO, MEASURE, PACK, REPORT = (
    "check", "process", "finetune", "head", "torso", "measure", "pack", "report")
SECONDS = {  # that a step is expected to take, by itself and for each second of video: two CPU cores at 256², and CUDA at 512²
    "cpu": {CHECK: (8, 0.15), PROCESS: (5, 2.5), FINETUNE: (6, 0.6), HEAD: (110, 0), TORSO: (35, 0), MEASURE: (15, 0),
            PACK: (3, 0), REPORT: (1, 0)},
    "cuda": {CHECK: (8, 0.15), PROCESS: (10, 2), FINETUNE: (5, 0.1), HEAD: (65, 0), TORSO: (45, 0), MEASURE: (10, 0),
             PACK: (3, 0), REPORT: (1, 0)},
}


@dataclass(frozen=True)
class TrainConfig(Settings):
    """Settings of the steps, each as the step's own command takes them."""

    process: ProcessConfig = field(default_factory=ProcessConfig)
    stage1: Stage1Config = field(default_factory=Stage1Config)
    stage2: Stage2Config = field(default_factory=Stage2Config)
    torso: TorsoConfig = field(default_factory=TorsoConfig)


class Trained(NamedTuple):
    """What `train_avatar` made: the avatar file, the report beside it, the folder of the work, and warnings in words."""

    avatar: Path
    report: Path
    work: Path
    warnings: list[str]


def train_avatar(video: Path | str, output: Path | str, *, consent: Consent | None = None, config: TrainConfig | None = None,
                 device: torch.device | str = "auto", overwrite: bool = False, restart: bool = False, discard: bool = False,
                 quiet: bool = False) -> Trained:
    """Make the avatar file `output` (NAME.avatar) of a video of one person, and NAME.report.html beside it.

    The work lies in NAME.training beside them; killed at any moment, the same call goes on there, and what is done with the
    same video and settings is not done again. `restart` begins anew, `discard` removes the work in the end. The `consent` note
    is kept in the avatar; None takes the one that the work has from an earlier call. Raises TalkheadError: what the steps
    refuse, no consent note, an output that exists without `overwrite`, the work of another video without `restart`.
    """
    video, output, device = Path(video), Path(output), pick_device(device)
    if output.suffix != ".avatar" or not output.stem:
        raise TalkheadError(f"{output}: the name of an avatar file should end in .avatar")
    if output.is_dir():
        raise TalkheadError(f"{output} is a folder; name a file that is not there yet with -o")
    work = work_of(output)
    for place in (output, work):
        refuse_inputs(place, video)
    probe(video)
    if work.is_dir() and not (work / RECORD).is_file() and any(path.name not in CLUTTER for path in work.iterdir()):
        raise TalkheadError(f"{work} holds other files; move them, or name another avatar with -o")
    with lock_output(output), lock_folder(work):
        made = _Training(video, output, config or TrainConfig(), device, quiet)
        return made.run(consent, overwrite, restart, discard)


def work_of(output: Path) -> Path:
    """The folder beside an avatar file in which `train_avatar` works."""
    return output.with_suffix(".training")


def recorded_consent(output: Path) -> Consent | None:
    """The consent note that an earlier, unfinished or finished, `train_avatar` of `output` was given; None without."""
    record = work_of(output) / RECORD
    values = read_json(record).get("consent") if record.is_file() else None
    return None if values is None else Consent.from_dict(values, str(record))


class _Training:
    """Where the results of the steps lie, and what each depends on."""

    def __init__(self, video: Path, output: Path, config: TrainConfig, device: torch.device, quiet: bool) -> None:
        self.video, self.output, self.config, self.device = video, output, config, device
        self.work, self.report = work_of(output), output.with_suffix(".report.html")
        self.clip, self.avatar = Clip(self.work / output.stem), Avatar(self.work / output.name)
        self.check, self.held_out = self.work / "check.json", self.work / "held_out"
        self.digest = sha256(video)
        self.record = Record(self.work / RECORD)
        seconds = probe(video).duration
        expected = SECONDS["cuda" if device.type == "cuda" else "cpu"]
        self.steps = Steps({name: once + each * seconds for name, (once, each) in expected.items()}, quiet)

    def run(self, consent: Consent | None, overwrite: bool, restart: bool, discard: bool) -> Trained:
        known = self.record.values
        consent = consent or recorded_consent(self.output)
        if consent is None:
            raise TalkheadError(f"no consent note is given for {self.output}; see `talkhead train --help`")
        for path in (self.output, self.report):
            refuse_existing(path, overwrite or known.get("unfinished", False))
        if known.get("video", self.digest) != self.digest and not restart:
            raise TalkheadError(f"{self.work} holds the work of another video, {known['name']!r}; name another avatar with -o, "
                                "or add --restart to begin anew there")
        if restart:
            for path in sorted(self.work.iterdir(), key=lambda path: path.name == RECORD):  # last, what says whose the folder is
                if path.name not in CLUTTER:
                    remove(path)
            self.record = Record(self.work / RECORD)
        elif known.get("device", self.device.type) != self.device.type:
            self._forget_unfinished()
        self.record.set(video=self.digest, name=self.video.name, unfinished=True, consent=consent.to_dict(),
                        device=self.device.type)
        self._check()
        self._process()
        self._train()
        self._measure()
        self._pack(consent)
        with self.steps.run(REPORT):
            checked = VideoCheck.from_dict(read_json(self.check))
            write_train_report(self.report, self.clip, checked, self.held_out, self.output, kept=not discard)
        self.record.set(unfinished=False)
        warnings = [*checked.to_change(), *self.clip.info.warnings]
        if discard:
            shutil.rmtree(self.work)
        return Trained(self.output, self.report, self.work, warnings)

    def _do(self, name: str, inputs: Any, result: Callable[[], str | None], work: Callable[[bool], object],
            forget: Callable[[], None] = lambda: None) -> None:
        """A step of `Record.do`, shown; `work` is told whether to be quiet."""
        def shown() -> None:
            with self.steps.run(name):
                work(self.steps.silent)

        if not self.record.do(name, inputs, result, shown, forget):
            self.steps.skip(name)

    def _check(self) -> None:
        def work(quiet: bool) -> None:
            write_json(self.check, dataclasses.asdict(check_video(self.video, config=self.config.process, quiet=quiet)))

        self._do(CHECK, [self.digest, config_to_dict(self.config.process)], lambda: _digest(self.check), work)

    def _process(self) -> None:
        def result() -> str | None:  # splits and excluded spans may be edited afterwards
            return fingerprint([self.clip.info.source_sha256, self.clip.info.content]) if self.clip.exists() else None

        def work(quiet: bool) -> None:
            process(self.video, self.clip.root, config=self.config.process, overwrite=self.clip.exists(), quiet=quiet)
            self.clip = Clip(self.clip.root)

        self._do(PROCESS, [self.digest, config_to_dict(self.config.process)], result, work)

    def _train(self) -> None:
        if self.avatar.json.is_file() and any(part["clip"] != self.clip.identity() for part in self.avatar.info.parts.values()):
            shutil.rmtree(self.avatar.root)  # of the clip as it was with other settings
            self.avatar.forget()
        clip, fingerprint_of_clip = self.clip, self.clip.fingerprint()
        self._part(FINETUNE, "stage1", [fingerprint_of_clip, config_to_dict(self.config.stage1), sha256(SHIPPED_BASE)],
                   self._finetune)
        self._part(HEAD, "stage2", [fingerprint_of_clip, config_to_dict(self.config.stage2)],
                   lambda **how: train_head(clip, self.avatar, config=self.config.stage2, **how))
        self._part(TORSO, "torso", [fingerprint_of_clip, config_to_dict(self.config.torso), sha256(self.avatar.stage2),
                                    _digest(clip.fitted_poses)],
                   lambda **how: train_torso(clip, self.avatar, config=self.config.torso, **how))

    def _finetune(self, **how: Any) -> None:
        """Stage 1, which needs sound and landmarks only; meanwhile the pictures are decoded that the head will be trained on."""
        with ThreadPoolExecutor(1) as pool:
            decoded = pool.submit(self.clip.decode)
            finetune(self.clip, self.avatar, config=self.config.stage1, **how)
            decoded.result()

    def _part(self, name: str, part: str, inputs: list[Any], train: Callable[..., object]) -> None:
        state, file = self.clip.training / part, self.avatar.part(part)

        def result() -> str | None:
            return None if (state / MARKER).is_file() else _digest(file)

        def work(quiet: bool) -> None:
            train(device=self.device, overwrite=result() is not None, quiet=quiet)

        self._do(name, inputs, result, work, lambda: shutil.rmtree(state, ignore_errors=True))

    def _forget_unfinished(self) -> None:
        """Remove trainings that were broken off on a device of another kind, for which other settings are right."""
        for part in PARTS:
            if (self.clip.training / part / MARKER).is_file():
                shutil.rmtree(self.clip.training / part)

    def _measure(self) -> None:
        inputs = [self.clip.fingerprint(), *(_digest(self.avatar.part(part)) for part in PARTS)]
        self._do(MEASURE, inputs, lambda: _digest(self.held_out / FIGURES),
                 lambda quiet: measure_held_out(self.avatar, self.clip, self.held_out, device=self.device, quiet=quiet))

    def _pack(self, consent: Consent) -> None:
        if self.avatar.info.consent != consent:
            self.avatar.save_info(dataclasses.replace(self.avatar.info, consent=consent))
        inputs = [{path.name: _digest(path) for path in self.avatar.files()}, _digest(self.held_out / FIGURES)]
        self._do(PACK, inputs, lambda: _digest(self.output), lambda quiet: pack(
            self.avatar, self.output, figures={"held out": read_json(self.held_out / FIGURES)["figures"]}, overwrite=True))


def _digest(path: Path) -> str | None:
    """SHA-256 of a file; None if it is not there."""
    return sha256(path) if path.is_file() else None
