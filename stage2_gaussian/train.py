"""Training the Gaussian head of one clip."""

import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shared.clip import Clip, good_frames
from shared.config import config_to_dict
from shared.files import sha256
from shared.image import over
from shared.landmarks import LIPS, N_LANDMARKS
from shared.metrics import psnr
from shared.progress import progress
from shared.resume import Saved, TrainState
from shared.torso_motion import SIMILARITY
from shared.training import TensorBoard, cpu_threads
from stage2_gaussian.checkpoint import save_head
from stage2_gaussian.config import Stage2Config, resolve
from stage2_gaussian.dataset import HeadDataset, batches, box_mask, over_colors
from stage2_gaussian.falling_hair import FallingHair, has_falling_hair
from stage2_gaussian.head import CameraGaussians, Head
from stage2_gaussian.initialization import make_canonical
from stage2_gaussian.losses import NAMES, PictureLoss, pose_prior
from stage2_gaussian.pose_refinement import apply_refinement, refine_batch, refine_poses
from stage2_gaussian.prune import prune
from stage2_gaussian.rasterize import Projected, blend, project_splats, rasterize
from stage2_gaussian.render import render_head

REPORT_EVERY = 25  # steps between two points of the curves
PICTURE_EVERY = 250  # steps between two pictures
REFINED_BY = 0.8  # share of the training over which the refinements of all poses are spread
VALIDATIONS = 10  # in a full training
VALIDATION_FRAMES = 16  # at most, evenly spaced in the validation stretch
VALIDATION_BATCH = 8  # frames rendered at once
FEWEST_VALIDATION_FRAMES = 8  # fewer tell too little to stop training by
PATIENCE = 5  # validations without an improvement after which training stops


def new_head(clip: Clip, indices: np.ndarray, config: Stage2Config) -> Head:
    """An untrained head on the CPU: Gaussians sampled from the frames `indices`, seeded networks."""
    falling = None
    if config.falling_hair and has_falling_hair(clip, indices):
        falling = FallingHair(config.splats)
        poses, torso = (torch.from_numpy(x[indices]) for x in (clip.load_poses(), clip.load_torso_motion()[:, :SIMILARITY]))
        falling.set_rest(poses, torso, clip.info.intrinsics, clip.info.width, clip.info.height)
    start = make_canonical(clip, indices, config.splats, np.random.default_rng(config.seed), falling)
    gaze = torch.from_numpy(clip.load_gaze()[indices])
    eyes = min(start.eyes, config.moving) if config.gaze and not gaze.isnan().all() else 0
    with torch.random.fork_rng([]):
        torch.manual_seed(config.seed)
        head = Head(torch.from_numpy(clip.load_neutral()[0]), *(torch.from_numpy(x) for x in start[:3]), moving=config.moving,
                    rank=config.rank, hidden=config.hidden, pose_rank=config.pose_rank, eyes=eyes)
    if falling is not None:
        falling.set_start(head.positions.detach(), head.code.centres)
        head.falling = falling
    head.blend.set_falloff(head.positions.detach()[: config.moving], head.code.centres)
    head.blend.set_range(torch.from_numpy(clip.load_landmarks()[indices]) - head.code.centres)
    if head.blend.gaze is not None:
        head.blend.gaze.set_range(gaze)
    head.shading.set_range(torch.from_numpy(clip.load_poses()[indices]))
    return head


def split_off_validation(indices: np.ndarray, part: float) -> tuple[np.ndarray, np.ndarray]:
    """Split frames (n,) into those to train on and a validation stretch of the share `part`, by which training stops.

    The stretch lies in the middle, since the last training frames resemble the test frames that follow most. It is empty if it
    would have fewer than FEWEST_VALIDATION_FRAMES.
    """
    count = round(part * len(indices))
    count = count if count >= FEWEST_VALIDATION_FRAMES else 0
    start = (len(indices) - count) // 2
    return np.delete(indices, np.s_[start : start + count]), indices[start : start + count]


class TrainingView(nn.Module):
    """The part of a training step before the rasteriser's sorting; on CUDA it is captured as a graph."""

    def __init__(self, head: Head, data: HeadDataset) -> None:
        super().__init__()
        self.head = head
        self.camera = data.intrinsics, data.width, data.height

    def forward(self, landmarks: Tensor, poses: Tensor, torso: Tensor, gaze: Tensor, refinement: Tensor,
                exposure: Tensor) -> tuple[Tensor, ...]:
        """landmarks (B, 68, 3), poses (B, 4, 4), torso motion (B, 4), gaze (B, 2), refinement (B, 6), exposure (B, 3) log gains
        -> fields of `Projected`."""
        intrinsics, width, height = self.camera
        gaussians = self.gaussians(landmarks, poses, torso, gaze, refinement, exposure)
        return tuple(project_splats(**gaussians._asdict(), intrinsics=intrinsics, width=width, height=height))

    def gaussians(self, landmarks: Tensor, poses: Tensor, torso: Tensor, gaze: Tensor, refinement: Tensor,
                  exposure: Tensor) -> CameraGaussians:
        """The same arguments -> Gaussians in camera space, before projection."""
        gaussians: CameraGaussians = self.head(landmarks, apply_refinement(poses, refinement), torso, gaze)
        return gaussians._replace(colors=gaussians.colors * torch.exp(exposure)[:, None])


class Trainer:
    """Everything that changes while training, and one step of it."""

    def __init__(self, head: Head, data: HeadDataset, config: Stage2Config) -> None:
        self.head, self.data, self.config, self.step = head, data, config, 0
        self.batch_size = config.batch
        self.poses = data.poses.clone()
        self.refinement = nn.Parameter(torch.zeros(len(data), 6, device=data.device))
        self.exposure = nn.Parameter(torch.zeros(len(data), 3, device=data.device))
        groups = [
            ([head.positions], config.rate_position),
            ([head.log_scales], config.rate_scale),
            ([head.rotations], config.rate_rotation),
            ([head.opacities], config.rate_opacity),
            ([head.colors], config.rate_color),
            ([head.blend.basis], config.rate_basis),
            ([*head.blend.networks.parameters(), *head.shading.network.parameters()], config.rate_network),
            (list(head.code.parameters()), config.rate_window),
            ([head.shading.basis], config.rate_shading),
            ([self.refinement], config.rate_pose),
            ([self.exposure], config.rate_exposure),
        ]
        if head.falling is not None:
            groups.append(([head.falling.follow], config.rate_follow))
        if head.blend.gaze is not None:
            groups += [([head.blend.gaze.basis], config.rate_basis), ([head.blend.gaze.heard], config.rate_network)]
        self.rates = [rate for _, rate in groups]
        self.optimizer = torch.optim.Adam([{"params": params, "lr": rate} for params, rate in groups], eps=1e-15,
                                          fused=True)
        self.project: Any = TrainingView(head, data)
        self.loss: Any = PictureLoss(config)
        self.captured = False
        self.best: dict[str, Tensor] = {}
        self.best_score, self.stale = -np.inf, 0

    def advance(self) -> tuple[dict[str, Tensor], float]:
        """Take one optimiser step; returns its loss terms, detached, and every REPORT_EVERY steps the batch's PSNR, else 0.

        Random numbers depend on seed and step alone. Out of GPU memory, halves the batch and warns.
        """
        refinements, steps = self.config.fits, self.config.steps
        if self.step in [round(REFINED_BY * (k + 0.5) / refinements * steps) for k in range(refinements)]:
            self.poses = refine_poses(self.head, self.data)
            with torch.no_grad():
                self.refinement.zero_()
        while True:
            try:
                return self._advance()
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise
            self.optimizer.zero_grad(set_to_none=True)
            self.project, self.loss, self.captured = TrainingView(self.head, self.data), PictureLoss(self.config), False
            torch.cuda.empty_cache()
            self.batch_size //= 2
            warnings.warn(f"out of GPU memory: stage 2 goes on with {self.batch_size} frames a step", stacklevel=2)

    def _advance(self) -> tuple[dict[str, Tensor], float]:
        config, data = self.config, self.data
        rng = np.random.default_rng([config.seed, self.step])
        rows = data.sample(self.batch_size, rng)
        pictures = data.frame_tensors(rows)
        chosen_colors = rng.integers(0, 256, (len(rows), 3), np.uint8), rng.random(len(rows)) < config.recolored
        if data.recolorable:
            pictures = over_colors(pictures, *(torch.from_numpy(x).to(data.device) for x in chosen_colors))
        noise = torch.from_numpy(rng.standard_normal((len(rows), N_LANDMARKS, 3), np.float32)).to(data.device)
        chosen = torch.from_numpy(rows).to(data.device)
        landmarks = data.landmarks[chosen] + config.landmark_noise * noise
        refinement, exposure = self.refinement[chosen], self.exposure[chosen]
        factor = config.final_rate ** (self.step / config.steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates):
            group["lr"] = rate * factor
        rgb, alpha = self._render(landmarks, self.poses[chosen], data.torso[chosen], data.gaze[chosen], refinement, exposure)
        found = self.loss(rgb, alpha, pictures.frames, pictures.backdrop, pictures.alpha, pictures.alpha_valid,
                          data.boxes[chosen])
        terms = dict(zip(NAMES, found.detach()))
        terms["pose"] = config.pose_weight * pose_prior(refinement)
        terms["exposure"] = config.exposure_weight * exposure.square().mean()
        self.optimizer.zero_grad(set_to_none=True)
        (found.sum() + terms["pose"] + terms["exposure"]).backward()
        self.optimizer.step()
        with torch.no_grad():
            self.head.colors.clamp_(0, 1)  # beyond, there would be no gradient to bring them back
        self.step += 1
        quality = 0.0
        if self.step % REPORT_EVERY == 0:
            shown = over(torch.cat([rgb, alpha], -1).detach(), pictures.backdrop.float() / 255)
            quality = psnr(shown, pictures.frames, pictures.head)
        return {name: term.detach() for name, term in terms.items()}, quality

    def _render(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        width, height = self.data.width, self.data.height
        if self.data.device.type != "cuda":
            gaussians = self.project.gaussians(*inputs)._asdict()
            return rasterize(**gaussians, intrinsics=self.data.intrinsics, width=width, height=height)
        if not self.captured:
            self._capture(inputs)
        return blend(Projected(*self.project(*inputs)), width, height)

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        """Capture the steps before and after the rasteriser as CUDA graphs: hundreds of small kernels in one launch each."""
        example = tuple(x.detach().clone().requires_grad_(x.requires_grad) for x in inputs)
        count, width, height = len(inputs[0]), self.data.width, self.data.height
        rgb, alpha = (torch.rand(count, height, width, c, device=self.data.device).requires_grad_() for c in (3, 1))
        grey = torch.zeros(count, height, width, dtype=torch.uint8, device=self.data.device)
        colors = grey[..., None].repeat(1, 1, 1, 3)
        picture = (rgb, alpha, colors, colors.clone(), grey, grey.clone(), self.data.boxes[:1].repeat(count, 1, 1))
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)  # graphs are captured on a side stream
        self.project, self.loss = torch.cuda.make_graphed_callables((self.project, self.loss), (example, picture),
                                                                  allow_unused_input=True)
        self.captured = True

    def track_best(self, score: float) -> None:
        """Keep a copy of the head if its validation `score` (dB) is the best so far."""
        self.stale += 1
        if score > self.best_score:
            self.best_score, self.stale = score, 0
            self.best = {name: tensor.detach().clone() for name, tensor in self.head.state_dict().items()}

    @property
    def overfits(self) -> bool:
        """Whether PATIENCE validations in a row brought no improvement."""
        return self.stale >= PATIENCE

    def restore_best(self) -> None:
        """Go back to the head with the best validation score; without validation, keep the last one."""
        if self.best:
            self.head.load_state_dict(self.best)

    def save(self, state: TrainState) -> None:
        """Save everything needed to go on."""
        state.save({"head": self.head.state_dict(), "best": self.best, "refinement": self.refinement, "exposure": self.exposure,
                    "poses": self.poses}, {"optimizer": self.optimizer}, step=self.step, batch=self.batch_size,
                   best=[self.best_score, self.stale] if self.best else None)

    def restore(self, saved: Saved) -> None:
        """Go on from what `save` wrote."""
        head = saved.group("head")
        self.head.blend.falloff = head["blend.falloff"]
        self.head.load_state_dict(head)
        self.poses = saved.tensors["poses"]
        with torch.no_grad():
            self.refinement.copy_(saved.tensors["refinement"])
            self.exposure.copy_(saved.tensors["exposure"])
        saved.restore_optimizer("optimizer", self.optimizer)
        self.step, self.batch_size = saved.progress["step"], saved.progress["batch"]
        self.best = saved.group("best")
        if self.best:
            self.best_score, self.stale = saved.progress["best"]


def train(clip: Clip, out: Path, *, config: Stage2Config, device: torch.device, state_dir: Path,
          quiet: bool = False) -> dict[str, float]:
    """Train a head on the train split of `clip` and write it to `out`; unless `fits` is 0, also refine all poses of the clip.

    Killed at any moment, the same call continues from `state_dir` and ends as if it had never stopped (bit for bit on a
    CPU). Returns steps, seconds, seconds per step, the last PSNR of training and of validation in dB (head region), the
    number of Gaussians and the file's megabytes. Raises TalkheadError for a clip without head pixels or a state left by a
    training with other settings.
    """
    config = resolve(config, device, clip.info.width, clip.info.height)
    indices, validation = split_off_validation(clip.split("train"), config.held_out)
    data = HeadDataset(clip, indices, device, recolorable=config.recolored > 0)
    meta = {"config": config_to_dict(config), "clip": clip.info.name, "frames": len(indices),
            "intrinsics": list(clip.info.intrinsics), "size": [clip.info.width, clip.info.height]}
    state = TrainState(state_dir, {"clip": clip.fingerprint(), "settings": config_to_dict(config)})
    if (saved := state.load(device)) is not None:
        count = len(saved.tensors["head/positions"])
        eyes = saved.tensors["head/blend.gaze.basis"].shape[1] if "head/blend.gaze.basis" in saved.tensors else 0
        head = Head(saved.tensors["head/code.centres"].cpu(), torch.zeros(count, 3), torch.ones(count), torch.zeros(count, 3),
                    moving=config.moving, rank=config.rank, hidden=config.hidden, pose_rank=config.pose_rank,
                    falling="head/falling.follow" in saved.tensors, eyes=eyes)
        trainer = Trainer(head.to(device), data, config)
        trainer.restore(saved)
    else:
        trainer = Trainer(new_head(clip, indices, config).to(device), data, config)
    with cpu_threads(1 if device.type == "cpu" else torch.get_num_threads()):  # the rasteriser has threads of its own
        numbers = _run(trainer, Validation(clip, validation, device), state, quiet)
        prune(trainer.head, data, np.random.default_rng(config.seed))
        data.kept.clear()
        save_head(out, trainer.head, meta)
        if config.fits:
            clip.save_fitted_poses(refine_clip_poses(trainer.head, clip, device, quiet), sha256(out))
        else:
            clip.drop_fitted_poses()
    state.remove()
    return {"steps": trainer.step, "seconds": state.seconds, **numbers,
            "splats": len(trainer.head.positions), "megabytes": out.stat().st_size / 1e6}


def refine_clip_poses(head: Head, clip: Clip, device: torch.device, quiet: bool = False) -> np.ndarray:
    """Poses (T, 4, 4) of the clip, refined in all good frames, held-out ones too; as tracked in the others."""
    poses = clip.load_poses()
    good = np.flatnonzero(good_frames(clip.info.excluded, clip.info.frames))
    head.eval()
    poses[good] = refine_poses(head, HeadDataset(clip, good, device), quiet=quiet).cpu().numpy()
    return poses


class Validation:
    """Quality of the head on the validation stretch, frames `indices` of the clip; none if there are no frames."""

    def __init__(self, clip: Clip, indices: np.ndarray, device: torch.device) -> None:
        self.data: HeadDataset | None = None
        if len(indices):
            rows = np.unique(np.linspace(0, len(indices) - 1, VALIDATION_FRAMES).round().astype(int))
            self.data = HeadDataset(clip, indices[rows], device)

    @torch.no_grad()
    def score(self, head: Head) -> tuple[float, float]:
        """Mean PSNR (dB) of the head region and of the mouth box, at refined poses."""
        assert self.data is not None
        data, sums = self.data, np.zeros(2)
        for rows in batches(np.arange(len(data)), VALIDATION_BATCH):
            batch = data.batch(rows)
            poses = refine_batch(head, batch, data)
            shown = over(render_head(head, batch.landmarks, poses, data.intrinsics, data.width, data.height, batch.torso,
                                     batch.gaze),
                         batch.backdrop)
            mouth = box_mask(batch.landmarks, batch.poses, data.intrinsics, data.width, data.height, LIPS)
            sums += [psnr(shown, batch.frames, mask) * len(rows) for mask in (batch.head, mouth)]
        return sums[0] / len(data), sums[1] / len(data)


def _run(trainer: Trainer, validation: Validation, state: TrainState, quiet: bool) -> dict[str, float]:
    """Take all steps that are left; returns seconds a step and PSNR in dB."""
    steps, board = trainer.config.steps, TensorBoard(state.curves)
    quality, val_quality, first_step, started = 0.0, 0.0, trainer.step, time.perf_counter()
    last_save = started
    with progress(steps, "stage 2", initial=trainer.step, quiet=quiet, unit="step") as bar:
        while trainer.step < steps:
            terms, measured = trainer.advance()
            if measured:
                quality = measured
                for name, term in terms.items():
                    board.scalar(f"loss/{name}", float(term), trainer.step)
                board.scalar("psnr/head", quality, trainer.step)
                bar.set_postfix_str(f"{quality:.2f} dB", refresh=False)
            if trainer.step % PICTURE_EVERY == 0:
                board.image("render", _picture(trainer), trainer.step)
            if validation.data is not None and trainer.step % max(1, steps // VALIDATIONS) == 0:
                val_quality, mouth = validation.score(trainer.head)
                board.scalar("psnr/validation head", val_quality, trainer.step)
                board.scalar("psnr/validation mouth", mouth, trainer.step)
                trainer.track_best(val_quality + mouth)
                if trainer.overfits:
                    break
            now = time.perf_counter()
            if now - last_save > trainer.config.save_seconds or trainer.step == steps:
                trainer.save(state)
                last_save = now
            bar.update()
    board.close()
    trainer.restore_best()
    per_step = (time.perf_counter() - started) / max(1, trainer.step - first_step)
    return {"seconds_per_step": per_step, "train_psnr_db": quality, "val_psnr_db": val_quality}


@torch.no_grad()
def _picture(trainer: Trainer) -> np.ndarray:
    """Render beside the frame, uint8, of the frame with the rarest expression."""
    data = trainer.data
    batch = data.batch(np.array([int(np.argmax(data.sampling_probs))]))
    rgba = render_head(trainer.head, batch.landmarks, batch.poses, data.intrinsics, data.width, data.height, batch.torso,
                       batch.gaze)
    pair = torch.cat([over(rgba, batch.backdrop), batch.frames], 2)[0]
    return (pair.clamp(0, 1) * 255).round().byte().cpu().numpy()
