"""Data folder of AD-NeRF, ER-NeRF, GaussianTalker and similar projects -> clip folder.

    ori_imgs/N.jpg          pictures, 25 a second                                     required
    aud.wav                 the sound                                                 required
    parsing/N.png           labels as colours; they replace ours except for the mouth's interior
    bc.jpg                  the background; it replaces our background plates
    transforms_train.json, transforms_val.json    frames[].img_id: the splits
    track_params.pt         focal length, read without unpickling

Landmarks, poses and torso motion come from our own tracker; N.lms and the fitted face model are not read.
"""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
from av.video.reformatter import Colorspace

from process_data.config import ProcessConfig
from process_data.opencv import require_contrib
from process_data.pipeline import check_target, clip_lock, finish_clip, process, save_with_content
from process_data.report.page import write_report
from shared.arrays import evenly, runs
from shared.clip import BACKGROUND, HEAD, MOUTH, NECK, TORSO, Clip, ExcludedSpan
from shared.config import config_to_dict
from shared.errors import MachineError, TalkheadError
from shared.files import read_json, write_json
from shared.landmarks import FPS, SAMPLES_PER_FRAME
from shared.media.audio_io import load_audio
from shared.media.video_io import GrayVideoWriter, VideoWriter, read_png, write_png
from shared.progress import progress
from shared.publish import remove_work, work_folder

Split = dict[str, list[tuple[int, int]]]
IMPORT = "import"  # folder in the work folder
SUFFIXES = (".jpg", ".jpeg", ".png")
MOST_MISSING = 0.5  # share of missing pictures above which the folder is refused
SOUND_TOLERANCE = 0.5  # seconds; a larger difference between sound and pictures is warned of
FOCAL_RANGE = (0.5, 10.0)  # picture sizes; anything else is no focal length in pixels
HEAD_SAMPLES = 20  # frames from which the colour of the head is determined
HEAD_COVER = 0.2  # least share of red and blue in our own head; otherwise the labels do not fit
REASON = "the picture is missing"  # of excluded frames
# BiSeNet's classes as AD-NeRF's script paints them. The script passes RGB colours to OpenCV, which writes BGR: the head, red in
# its source, is blue in the file. Some forks write it the other way round, so our own labels decide which of the two the
# head is. TalkingGaussian adds grey for the mouth's interior and black for hair.
WHITE, GREEN, GREY, BLACK, RED, BLUE = range(6)
PALETTE = np.array([(255, 255, 255), (0, 255, 0), (100, 100, 100), (0, 0, 0), (255, 0, 0), (0, 0, 255)])


@dataclass(frozen=True)
class Pictures:
    """The numbered pictures: frame t is number first + t; `paths` lacks those that are missing."""

    paths: dict[int, Path]
    first: int
    count: int


def import_adnerf(source: Path, clip_dir: Path, *, config: ProcessConfig, workers: int | None = None,
                  overwrite: bool = False, quiet: bool = False) -> Clip:
    """Make a clip folder of a data folder and return it. An interrupted run continues where it stopped.

    Raises TalkheadError: no pictures, no sound, pictures of several sizes, no face, a finished clip at `clip_dir` without
    `overwrite`.
    """
    clip = Clip(clip_dir)
    if clip.exists() and not overwrite:
        raise TalkheadError(f"{clip_dir} is a finished clip already; add --overwrite to make it again")
    if not clip.exists() and clip_dir.exists() and not clip_dir.is_dir():
        raise TalkheadError(f"{clip_dir} exists and is no clip; name another folder")
    check_target(clip, source, source / "aud.wav", source / "bc.jpg")
    require_contrib()
    pictures = find_pictures(source)
    if not (source / "aud.wav").is_file():
        raise TalkheadError(f"{source} holds no aud.wav; a talking head needs its sound")
    work = work_folder(clip_dir, IMPORT)
    continues = work.is_dir()
    try:
        with clip_lock(clip):
            try:
                _import(source, pictures, work, clip_dir.resolve().name, config, workers, quiet)
            except MachineError:
                raise  # a full disk or too little memory: the work is kept for the next run
            except TalkheadError:  # the folder cannot be used: nothing is left behind
                remove_work(clip_dir, IMPORT)
                raise
            finish_clip(clip, f"{IMPORT}/{clip_dir.resolve().name}")
    except TalkheadError:
        if continues and not any(clip_dir.iterdir()):
            clip_dir.rmdir()
        raise
    return Clip(clip_dir)


def _import(source: Path, pictures: Pictures, work: Path, name: str, config: ProcessConfig, workers: int | None,
            quiet: bool) -> Clip:
    size = picture_size(pictures)
    focal, notes = read_focal(source, size)
    if focal is not None and config.focal_sizes == ProcessConfig().focal_sizes:
        config = dataclasses.replace(config, focal_sizes=focal)
    splits, more = read_split(source, pictures)
    notes += more
    key = {"files": _digest(source, pictures), "config": json.loads(json.dumps(config_to_dict(config))),
           "split": json.loads(json.dumps(splits))}
    if not (work / "key.json").is_file() or read_json(work / "key.json") != key:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        write_json(work / "key.json", key)
    video = work / f"{source.resolve().name}.mp4"
    if not video.is_file() or not (work / "video.json").is_file():
        absent, more = _write_video(source, pictures, size, video, quiet)
        write_json(work / "video.json", {"missing": absent, "notes": more})
    written = read_json(work / "video.json")
    notes += written["notes"]
    clip = Clip(work / name)
    if not clip.exists():
        clip = process(video, clip.root, config=config, splits=splits, workers=workers, quiet=quiet)
    notes += replace_labels(source, pictures, clip, size, quiet) + replace_plates(source, clip, size)
    info = clip.info
    missing = [ExcludedSpan(start, stop, REASON) for start, stop in runs([t for t in written["missing"] if t < info.frames])]
    # an earlier run may have written these already and been killed later, so duplicates are removed
    save_with_content(clip, dataclasses.replace(
        info, source_name=source.resolve().name, warnings=list(dict.fromkeys([*info.warnings, *notes])),
        excluded=sorted(dict.fromkeys([*info.excluded, *missing]), key=lambda span: span.start)))
    write_report(clip)
    return clip


def find_pictures(source: Path) -> Pictures:
    """The pictures ori_imgs/N.jpg, counted from the lowest number. Raises TalkheadError if there are none or too few."""
    folder = source / "ori_imgs"
    if not folder.is_dir():
        raise TalkheadError(f"{source} is no AD-NeRF-style data folder: it has no folder ori_imgs")
    paths = {int(path.stem): path for path in sorted(folder.iterdir())
             if path.suffix.lower() in SUFFIXES and path.stem.isdecimal()}
    if not paths:
        raise TalkheadError(f"{folder} holds no pictures named 0.jpg, 1.jpg, …")
    first, count = min(paths), max(paths) - min(paths) + 1
    if len(paths) < (1 - MOST_MISSING) * count:
        raise TalkheadError(f"{folder}: pictures {first} to {first + count - 1} are expected, but only {len(paths)} of "
                            f"these {count} are there")
    return Pictures(paths, first, count)


def picture_size(pictures: Pictures) -> tuple[int, int]:
    """Width and height of the first readable picture, pixels. Raises TalkheadError if none is readable."""
    height, width = _first_picture(pictures).shape[:2]
    return width, height


def _first_picture(pictures: Pictures) -> np.ndarray:
    for number in sorted(pictures.paths):
        if (picture := _read(pictures.paths[number])) is not None:
            return picture
    raise TalkheadError(f"{next(iter(pictures.paths.values())).parent}: none of the {len(pictures.paths)} pictures is readable")


def _read(path: Path | None) -> np.ndarray | None:
    """uint8 (H,W,3) RGB, or None where there is no readable picture."""
    if path is None:
        return None
    try:
        return read_png(path)
    except TalkheadError:
        return None


def _digest(source: Path, pictures: Pictures) -> str:
    """Digest of names, sizes and times of the files that the video is made of."""
    files = [source / "aud.wav", *pictures.paths.values()]
    listing = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return sha256(json.dumps(listing).encode()).hexdigest()


def read_focal(source: Path, size: tuple[int, int]) -> tuple[float | None, list[str]]:
    """Focal length in picture sizes, from track_params.pt, else from transforms_train.json, None without it; and warnings."""
    if not (source / "track_params.pt").is_file() and not (source / "transforms_train.json").is_file():
        return None, []
    if size[0] != size[1]:
        return None, ["the focal length of the data folder is not used, since its pictures are not square"]
    name, focal = "track_params.pt", None
    if (source / name).is_file():
        focal = _tracked_focal(source / name)
        if focal is None:
            return None, [f"{name} is not used: it holds no focal length, or more than tensors, which is never loaded"]
    else:
        name = "transforms_train.json"
        found = read_json(source / name).get("focal_len")
        if not isinstance(found, int | float):
            return None, []
        focal = float(found)
    if not FOCAL_RANGE[0] <= focal / size[0] <= FOCAL_RANGE[1]:
        return None, [f"the focal length {focal:g} of {name} is not used: it does not suit pictures of {size[0]} pixels"]
    return focal / size[0], []


def _tracked_focal(path: Path) -> float | None:
    import pickle

    import torch

    try:
        params = torch.load(path, map_location="cpu", weights_only=True)
        return float(torch.as_tensor(params["focal"]).reshape(-1)[0])
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, KeyError, IndexError, TypeError, ValueError):
        return None


def read_split(source: Path, pictures: Pictures) -> tuple[Split | None, list[str]]:
    """Splits `train` and `test` from the transforms files as ranges start ≤ t < stop, None without them; and warnings.

    The test split is transforms_val.json and, if present, transforms_test.json; without them all frames that are not in
    train. A frame in both is tested, not trained.
    """
    train, outside = _frames_of(source / "transforms_train.json", pictures)
    if train is None:
        return None, []
    test: set[int] = set()
    for name in ("transforms_val.json", "transforms_test.json"):
        found, more = _frames_of(source / name, pictures)
        test |= found or set()
        outside += more
    notes = [f"{outside} frame(s) of the transforms files have no picture"] if outside else []
    if train & test:
        notes.append(f"{len(train & test)} frame(s) are in both transforms files; they are tested, not trained")
    if not train - test:
        return None, [*notes, "the transforms files leave nothing to train on; the usual split is made"]
    split = {"train": runs(sorted(train - test)), "test": runs(sorted(test or set(range(pictures.count)) - train))}
    return {name: ranges for name, ranges in split.items() if ranges}, notes


def _frames_of(path: Path, pictures: Pictures) -> tuple[set[int] | None, int]:
    """Frame indices that a transforms file names, and how many of its frames have no picture; None without the file."""
    if not path.is_file():
        return None, 0
    try:
        numbers = [int(frame["img_id"]) for frame in read_json(path)["frames"]]
    except (KeyError, TypeError, ValueError) as error:
        raise TalkheadError(f"{path}: expected frames with an img_id each; mend the file or take it away") from error
    inside = {number - pictures.first for number in numbers if number in pictures.paths}
    return inside, len(set(numbers)) - len(inside)


def _write_video(source: Path, pictures: Pictures, size: tuple[int, int], video: Path,
                 quiet: bool) -> tuple[list[int], list[str]]:
    """Write pictures and sound as a 25 fps video; a frame without a readable picture repeats the one before.

    Returns the numbers of those frames, and warnings.
    """
    sound = load_audio(source / "aud.wav")
    # pictures are numbered from 0 or 1; a higher first number means an excerpt, whose sound starts later too
    sound = sound[(pictures.first if pictures.first > 1 else 0) * SAMPLES_PER_FRAME :]
    if not len(sound):
        raise TalkheadError(f"{source / 'aud.wav'} ends before picture {pictures.first}, the first")
    width, height = size[0] - size[0] % 2, size[1] - size[1] % 2
    held, missing = _first_picture(pictures), []
    with (VideoWriter(video, width, height, audio=sound, crf=10, matrix=Colorspace.ITU601) as writer,
          progress(pictures.count, "reading pictures", quiet=quiet, unit="frame") as bar):
        for t in range(pictures.count):
            path = pictures.paths.get(pictures.first + t)
            picture = _read(path)
            if picture is None:
                missing.append(t)
            elif picture.shape != held.shape:
                raise TalkheadError(f"{path}: expected a picture of {size[0]}x{size[1]} like the others, found "
                                    f"{picture.shape[1]}x{picture.shape[0]}")
            else:
                held = picture
            writer.write(held[:height, :width])
            bar.update()
    notes = [f"{len(missing)} picture(s) are missing or unreadable; these frames are skipped"] if missing else []
    picture_seconds, sound_seconds = pictures.count / FPS, len(sound) / FPS / SAMPLES_PER_FRAME
    if abs(picture_seconds - sound_seconds) > SOUND_TOLERANCE:
        notes.append(f"the pictures last {picture_seconds:.1f} s and the sound {sound_seconds:.1f} s; it is cut or filled up "
                     "with silence")
    return missing, notes


def _like_frames(picture: np.ndarray, size: tuple[int, int], clip: Clip, interpolation: int) -> np.ndarray | None:
    """A picture of the data folder, cropped and scaled like the clip's frames, which were made of pictures of `size`.

    It may have another size, but not another aspect ratio: then None.
    """
    height, width = picture.shape[:2]
    if abs(width * size[1] - height * size[0]) > 0.01 * height * size[0]:
        return None
    if (width, height) != size:
        picture = cv2.resize(picture, size, interpolation=interpolation)
    x, y, side = clip.info.crop
    picture = picture[y : y + side, x : x + side]
    wanted = (clip.info.width, clip.info.height)
    return picture if picture.shape[1::-1] == wanted else cv2.resize(picture, wanted, interpolation=interpolation)


def color_codes(picture: np.ndarray) -> np.ndarray:
    """uint8 (H,W,3) RGB -> (H,W) uint8, the nearest colour of PALETTE."""
    return _nearest_colors()[tuple(np.moveaxis(picture >> 4, -1, 0))]


def _nearest_colors() -> np.ndarray:
    """(16,16,16) uint8: the nearest colour of the palette for every 16th of each channel."""
    levels = np.stack(np.meshgrid(*[np.arange(16) * 17] * 3, indexing="ij"), -1)
    return ((levels[..., None, :] - PALETTE) ** 2).sum(-1).argmin(-1).astype(np.uint8)


def labels_of(codes: np.ndarray, ours: np.ndarray, head: int) -> np.ndarray:
    """Palette codes (H,W) -> labels (H,W) uint8. `head`: RED or BLUE; the mouth's interior is taken from `ours` (H,W)."""
    table = np.zeros(len(PALETTE), np.uint8)
    table[[WHITE, GREEN, GREY, BLACK]] = BACKGROUND, NECK, HEAD, HEAD
    table[[RED, BLUE]] = (HEAD, TORSO) if head == RED else (TORSO, HEAD)
    labels = table[codes]
    labels[(ours == MOUTH) & (labels == HEAD)] = MOUTH
    return labels


def replace_labels(source: Path, pictures: Pictures, clip: Clip, size: tuple[int, int], quiet: bool = False) -> list[str]:
    """Replace the clip's labels by those of parsing/, in the frames that have a picture there; returns warnings.

    The clip's alpha is adapted: it keeps its soft edge near the new outline of the person, and is 0 or 255 elsewhere.
    """
    folder = source / "parsing"
    if not folder.is_dir():
        return []
    count = clip.info.frames

    def codes(t: int) -> np.ndarray | None:
        picture = _read(folder / f"{pictures.first + t}.png")
        fitting = None if picture is None else _like_frames(picture, size, clip, cv2.INTER_NEAREST)
        return None if fitting is None else color_codes(fitting)

    head = _head_color(clip, {t: found for t in evenly(count, HEAD_SAMPLES).tolist()
                               if (found := codes(t)) is not None})
    if head is None:
        return ["parsing/ is not used: neither red nor blue lies where the head is, or its shape is not the pictures'"]
    own = 0
    soft = clip.alpha.is_file()
    alphas = clip.alpha_frames() if soft else iter(())
    with (GrayVideoWriter(clip.labels, clip.info.width, clip.info.height) as labels_out,
          _AlphaWriter(clip, soft) as alpha_out, progress(count, "labels", quiet=quiet, unit="frame") as bar):
        for t, ours in enumerate(clip.label_frames()):
            found = codes(t)
            own += found is None
            labels = ours if found is None else labels_of(found, ours, head)
            labels_out.write(labels)
            if soft:
                alpha = next(alphas)
                alpha_out.write(alpha if found is None else fit_alpha(alpha, labels != BACKGROUND))
            bar.update()
    return [f"{own} frame(s) have no picture in parsing/; they keep our labels"] if own else []


class _AlphaWriter:
    """Rewrites the clip's alpha; does nothing if the clip has none."""

    def __init__(self, clip: Clip, soft: bool) -> None:
        self.writer = GrayVideoWriter(clip.alpha, clip.info.width, clip.info.height) if soft else None

    def __enter__(self) -> "_AlphaWriter":
        if self.writer:
            self.writer.__enter__()
        return self

    def write(self, alpha: np.ndarray) -> None:
        assert self.writer
        self.writer.write(alpha)

    def __exit__(self, *error) -> None:
        if self.writer:
            self.writer.__exit__(*error)


def _head_color(clip: Clip, codes: dict[int, np.ndarray]) -> int | None:
    """The colour that covers most of our own head: RED or BLUE, None if neither. codes: palette codes (H,W) by frame."""
    votes = np.zeros(len(PALETTE), int)
    for t, found in codes.items():
        ours = next(clip.label_frames(t, t + 1))
        votes += np.bincount(found[np.isin(ours, (HEAD, MOUTH))], minlength=len(PALETTE))
    if votes[RED] + votes[BLUE] < HEAD_COVER * max(1, votes.sum()):
        return None
    return RED if votes[RED] > votes[BLUE] else BLUE


def fit_alpha(alpha: np.ndarray, person: np.ndarray) -> np.ndarray:
    """Alpha (H,W) uint8 adapted to `person` (H,W) bool: kept near the person's outline, 255 inside it and 0 outside."""
    reach = 2 * max(1, alpha.shape[0] // 128) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
    mask = person.astype(np.uint8)
    out = np.where(cv2.dilate(mask, kernel) > 0, alpha, 0)
    return np.where(cv2.erode(mask, kernel) > 0, 255, out).astype(np.uint8)


def replace_plates(source: Path, clip: Clip, size: tuple[int, int]) -> list[str]:
    """Replace the background plate of every shot by bc.jpg, if it is there; returns warnings."""
    path = source / "bc.jpg"
    if not path.is_file():
        return []
    picture = _read(path)
    plate = None if picture is None else _like_frames(picture, size, clip, cv2.INTER_AREA)
    if plate is None:
        return ["bc.jpg is not used: it is unreadable, or its shape is not the pictures'"]
    for shot in range(len(clip.info.shots)):
        write_png(clip.plate_path(shot), plate)
    return []
