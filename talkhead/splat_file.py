"""The head of an avatar as a .ply splat file for other programs, and an edited file back into an avatar."""

import itertools
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from shared.avatar import Avatar, replace_edited_head
from shared.checkpoint import load_checkpoint
from shared.errors import TalkheadError
from shared.files import atomic_path, refuse_existing, refuse_inputs, same_file
from shared.lock import lock_output
from shared.publish import whole_folder
from stage2_gaussian.checkpoint import load_head, save_head
from stage2_gaussian.ply import POSED, Changes, canonical_gaussians, posed_gaussians, read_ply, replace_splats, write_ply


def export_head(avatar: Avatar, output: Path | str, *, landmarks: np.ndarray | None = None, frame: str = "",
                inputs: Iterable[Path] = (), overwrite: bool = False) -> int:
    """Write the avatar's head as .ply, neutral or with the expression `landmarks` (68, 3); returns the number of Gaussians.

    `frame` names the expression in the file's header, `inputs` are files that `output` must not be. Raises TalkheadError.
    """
    path = Path(output)
    if path.suffix.lower() != ".ply":
        raise TalkheadError(f"{path}: the splat file's name should end in .ply")
    refuse_inputs(path, *inputs, *avatar.files())
    refuse_existing(path, overwrite)
    avatar.require("stage2")
    head = load_head(avatar.stage2, "cpu")
    if landmarks is None:
        gaussians = canonical_gaussians(head)
        write_ply(path, gaussians)
    else:
        poses = avatar.load_motion()[0]
        gaussians = posed_gaussians(head, landmarks, poses[len(poses) // 2])
        write_ply(path, gaussians, f"{POSED} {frame}")
    return len(gaussians.means)


def import_head(avatar: Avatar, ply: Path | str, output: Path | str | None = None, *,
                overwrite: bool = False) -> tuple[Changes, list[str], Path]:
    """Make an edited .ply the head of an avatar; returns what changed, warnings, and a path.

    With `output`, a copy of the avatar in that folder gets the head, and the path is the folder; otherwise the avatar itself
    does, which needs `overwrite`, and the path is the backup of its head. Raises TalkheadError before anything is written.
    """
    path, output = Path(ply), None if output is None else Path(output)
    if output is not None and not same_file(output, avatar.root):
        refuse_inputs(output, path)
    in_place = output is None or output.resolve() == avatar.root.resolve()
    if in_place:
        avatar.require_folder()
    refuse_existing(output or avatar.stage2, overwrite)
    avatar.require("stage2")
    if output is not None and output.exists() and (output.is_file() or not Avatar(output).json.is_file()):
        raise TalkheadError(f"{output} is no avatar folder, so it will not be replaced; name another folder")
    gaussians, warnings = read_ply(path)
    head, meta = load_head(avatar.stage2, "cpu"), load_checkpoint(avatar.stage2)[1]
    try:
        changes = replace_splats(head, gaussians)
    except TalkheadError as error:
        raise TalkheadError(f"{path}: {error}") from error
    if 2 * changes.new > len(head.positions):
        warnings.append(f"{changes.new} of {len(head.positions)} splats were moved or added; a file that was exported with "
                        "--landmarks shows an expression and should not be imported")
    meta, trained = {**meta, "imported": path.name}, avatar.trained_head()
    if output is None or in_place:
        backup = _back_up(avatar.stage2)
        save_head(avatar.work("stage2"), head, meta)
        replace_edited_head(avatar, trained)
        return changes, warnings, backup
    own = {file.name for file in avatar.contents()}
    with lock_output(output), whole_folder(output, avatar.json.name, own.__contains__) as partial:
        new = Avatar(partial)
        for file in avatar.contents():
            if file.is_file() and file != avatar.stage2:
                shutil.copyfile(file, partial / file.name)
        save_head(new.work("stage2"), head, meta)
        replace_edited_head(new, trained)
    return changes, warnings, output


def _back_up(file: Path) -> Path:
    """Copy `file` beside itself under the first free name of stage2.before-import-1.safetensors, …"""
    names = (file.with_name(f"{file.stem}.before-import-{k}{file.suffix}") for k in itertools.count(1))
    free = next(name for name in names if not name.exists())
    with atomic_path(free) as partial:
        shutil.copyfile(file, partial)
    return free
