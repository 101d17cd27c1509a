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
from shared.landmarks import LIPS, N_LANDMARKS
from shared.metrics import psnr
from shared.resume import Saved, TrainState
from shared.training import TensorBoard, cpu_threads, progress
from stage2_gaussian.checkpoint import save_head
from stage2_gaussian.config import Stage2Config, resolve
from stage2_gaussian.dataset import HeadFrames, batches, box_mask
from stage2_gaussian.head import Head, Splats
from stage2_gaussian.initialization import make_canonical
from stage2_gaussian.losses import NAMES, PictureLoss, over, pose_prior
from stage2_gaussian.pose_refinement import align_poses, fit_poses, refined
from stage2_gaussian.prune import prune
from stage2_gaussian.rasterize import Projected, blend, project_splats, rasterize
from stage2_gaussian.render import render_head

REPORT_EVERY = 25
PICTURE_EVERY = 250
FITTED_BY = 0.8  # of the training, the part over which the fits of all poses are spread
CHECKS = 10  # looks at the held-out stretch in a full training
CHECK_FRAMES = 16  # of it
FEWEST_HELD = 8
PATIENCE = 5  # checks without an improvement after which training stops


def new_head(clip: Clip, indices: np.ndarray, config: Stage2Config) -> Head:
    """An untrained head on the CPU: splats from the frames `indices`, seeded networks."""
    start = make_canonical(clip, indices, config.splats, np.random.default_rng(config.seed))
    with torch.random.fork_rng([]):
        torch.manual_seed(config.seed)
        head = Head(torch.from_numpy(clip.load_neutral()[0]), *(torch.from_numpy(x) for x in start), moving=config.moving,
                    rank=config.rank, hidden=config.hidden, pose_rank=config.pose_rank)
    head.blend.localise(head.positions.detach()[: config.moving], head.code.centres)
    head.blend.set_range(torch.from_numpy(clip.load_landmarks()[indices]) - head.code.centres)
    head.shading.set_range(torch.from_numpy(clip.load_poses()[indices]))
    return head


def hold_out(indices: np.ndarray, part: float) -> tuple[np.ndarray, np.ndarray]:
    """Training frames (n,) -> those to learn from, and a stretch of `part` of them from the middle, to see when to stop.

    Not from the end: what comes next in the clip resembles it most. Too few frames to judge by are not held out.
    """
    held = round(part * len(indices))
    held = held if held >= FEWEST_HELD else 0
    start = (len(indices) - held) // 2
    return np.delete(indices, np.s_[start : start + held]), indices[start : start + held]


class TrainingView(nn.Module):
    """The part of a training step before the rasteriser sorts; on CUDA it becomes a graph."""

    def __init__(self, head: Head, data: HeadFrames) -> None:
        super().__init__()
        self.head = head
        self.camera = data.intrinsics, data.width, data.height

    def forward(self, landmarks: Tensor, poses: Tensor, refinement: Tensor, exposure: Tensor) -> tuple[Tensor, ...]:
        """landmarks (B, 68, 3), poses (B, 4, 4), refinement (B, 6), exposure (B, 3) log gains -> fields of `Projected`."""
        intrinsics, width, height = self.camera
        splats = self.splats(landmarks, poses, refinement, exposure)
        return tuple(project_splats(**splats._asdict(), intrinsics=intrinsics, width=width, height=height))

    def splats(self, landmarks: Tensor, poses: Tensor, refinement: Tensor, exposure: Tensor) -> Splats:
        """The same before projection: what `rasterize` takes."""
        splats: Splats = self.head(landmarks, refined(poses, refinement))
        return splats._replace(colors=splats.colors * torch.exp(exposure)[:, None])


class Trainer:
    """Everything that changes while training, and one step of it."""

    def __init__(self, head: Head, data: HeadFrames, config: Stage2Config) -> None:
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
        self.rates = [rate for _, rate in groups]
        self.optimizer = torch.optim.Adam([{"params": params, "lr": rate} for params, rate in groups], eps=1e-15,
                                          fused=True)
        self.shoot: Any = TrainingView(head, data)
        self.loss: Any = PictureLoss(config)
        self.captured = False
        self.best: dict[str, Tensor] = {}
        self.best_score, self.stale = -np.inf, 0

    def advance(self) -> tuple[dict[str, Tensor], float]:
        """One optimiser step -> its loss terms, detached, and the batch's PSNR when it is due for a report, else 0.

        What it draws depends on seed and step alone. Out of GPU memory, it goes on with half the batch, with a warning.
        """
        fits, steps = self.config.fits, self.config.steps
        if self.step in [round(FITTED_BY * (k + 0.5) / fits * steps) for k in range(fits)]:
            self.poses = align_poses(self.head, self.data)
            with torch.no_grad():
                self.refinement.zero_()
        while True:
            try:
                return self._advance()
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise
            self.optimizer.zero_grad(set_to_none=True)
            self.shoot, self.loss, self.captured = TrainingView(self.head, self.data), PictureLoss(self.config), False
            torch.cuda.empty_cache()
            self.batch_size //= 2
            warnings.warn(f"out of GPU memory: stage 2 goes on with {self.batch_size} frames a step", stacklevel=2)

    def _advance(self) -> tuple[dict[str, Tensor], float]:
        config, data = self.config, self.data
        rng = np.random.default_rng([config.seed, self.step])
        rows = data.sample(self.batch_size, rng)
        pictures = data.pictures(rows)
        noise = torch.from_numpy(rng.standard_normal((len(rows), N_LANDMARKS, 3), np.float32)).to(data.device)
        chosen = torch.from_numpy(rows).to(data.device)
        landmarks = data.landmarks[chosen] + config.landmark_noise * noise
        refinement, exposure = self.refinement[chosen], self.exposure[chosen]
        factor = config.final_rate ** (self.step / config.steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates):
            group["lr"] = rate * factor
        rgb, alpha = self._render(landmarks, self.poses[chosen], refinement, exposure)
        found = self.loss(rgb, alpha, pictures.frames, pictures.behind, pictures.alpha, pictures.sure, data.boxes[chosen])
        terms = dict(zip(NAMES, found.detach()))
        terms["pose"] = config.pose_weight * pose_prior(refinement)
        terms["exposure"] = config.exposure_weight * exposure.square().mean()
        self.optimizer.zero_grad(set_to_none=True)
        (found.sum() + terms["pose"] + terms["exposure"]).backward()
        self.optimizer.step()
        self.step += 1
        quality = 0.0
        if self.step % REPORT_EVERY == 0:
            shown = over(torch.cat([rgb, alpha], -1).detach(), pictures.behind.float() / 255)
            quality = psnr(shown, pictures.frames, pictures.head)
        return {name: term.detach() for name, term in terms.items()}, quality

    def _render(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        width, height = self.data.width, self.data.height
        if self.data.device.type != "cuda":
            splats = self.shoot.splats(*inputs)._asdict()
            return rasterize(**splats, intrinsics=self.data.intrinsics, width=width, height=height)
        if not self.captured:
            self._capture(inputs)
        return blend(Projected(*self.shoot(*inputs)), width, height)

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        """Turn what surrounds the rasteriser into CUDA graphs: hundreds of small kernels at one launch each."""
        example = tuple(x.detach().clone().requires_grad_(x.requires_grad) for x in inputs)
        count, width, height = len(inputs[0]), self.data.width, self.data.height
        rgb, alpha = (torch.rand(count, height, width, c, device=self.data.device).requires_grad_() for c in (3, 1))
        grey = torch.zeros(count, height, width, dtype=torch.uint8, device=self.data.device)
        colors = grey[..., None].repeat(1, 1, 1, 3)
        picture = (rgb, alpha, colors, colors.clone(), grey, grey.clone(), self.data.boxes[:1].repeat(count, 1, 1))
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)  # graphs are captured on a side stream
        self.shoot, self.loss = torch.cuda.make_graphed_callables((self.shoot, self.loss), (example, picture),
                                                                  allow_unused_input=True)
        self.captured = True

    def judge(self, score: float) -> None:
        """Keep the head if `score` (dB) on the held-out stretch is the best so far; training stops after PATIENCE others."""
        self.stale += 1
        if score > self.best_score:
            self.best_score, self.stale = score, 0
            self.best = {name: tensor.detach().clone() for name, tensor in self.head.state_dict().items()}

    @property
    def overfits(self) -> bool:
        """Whether the held-out stretch has gone without an improvement for too long."""
        return self.stale >= PATIENCE

    def take_best(self) -> None:
        """Go back to the best head that was judged; without any, stay."""
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
        self.head.blend.masks = head["blend.masks"]
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
    """Train a head on the train split of `clip` and write it to `out`; unless `fits` is 0, also fit all poses of the clip to it.

    Killed at any moment, the same call goes on from `state_dir` and ends where it would have ended (bit for bit on a
    CPU). Returns steps, seconds, seconds a step, the last training PSNR in dB (head region), that of the held-out stretch
    and the file's megabytes. Raises TalkheadError for a clip without head pixels or a state left by a training with
    other settings.
    """
    config = resolve(config, device, clip.info.width, clip.info.height)
    indices, held = hold_out(clip.split("train"), config.held_out)
    data = HeadFrames(clip, indices, device)
    meta = {"config": config_to_dict(config), "clip": clip.info.name, "frames": len(indices),
            "intrinsics": list(clip.info.intrinsics), "size": [clip.info.width, clip.info.height]}
    state = TrainState(state_dir, {"clip": clip.fingerprint(), "settings": config_to_dict(config)})
    if (saved := state.load(device)) is not None:
        count = len(saved.tensors["head/positions"])
        head = Head(saved.tensors["head/code.centres"].cpu(), torch.zeros(count, 3), torch.ones(count), torch.zeros(count, 3),
                    moving=config.moving, rank=config.rank, hidden=config.hidden, pose_rank=config.pose_rank)
        trainer = Trainer(head.to(device), data, config)
        trainer.restore(saved)
    else:
        trainer = Trainer(new_head(clip, indices, config).to(device), data, config)
    with cpu_threads(1 if device.type == "cpu" else torch.get_num_threads()):  # the rasteriser has threads of its own
        numbers = _run(trainer, Checks(clip, held, device), state, quiet)
        prune(trainer.head, data, np.random.default_rng(config.seed))
        data.kept.clear()
        save_head(out, trainer.head, meta)
        if config.fits:
            clip.save_fitted_poses(fitted_poses(trainer.head, clip, device, quiet), sha256(out))
        else:
            clip.drop_fitted_poses()
    state.remove()
    return {"steps": trainer.step, "seconds": state.seconds, **numbers,
            "splats": len(trainer.head.positions), "megabytes": out.stat().st_size / 1e6}


def fitted_poses(head: Head, clip: Clip, device: torch.device, quiet: bool = False) -> np.ndarray:
    """Poses (T, 4, 4) of the clip: in good frames fitted to the picture, held-out ones too; elsewhere as tracked."""
    poses = clip.load_poses()
    good = np.flatnonzero(good_frames(clip.info.bad, clip.info.frames))
    head.eval()
    poses[good] = align_poses(head, HeadFrames(clip, good, device), quiet=quiet).cpu().numpy()
    return poses


class Checks:
    """The held-out stretch: how good the head is on frames it does not learn from, and the best head so far."""

    def __init__(self, clip: Clip, held: np.ndarray, device: torch.device) -> None:
        picked = held[np.unique(np.linspace(0, len(held) - 1, CHECK_FRAMES).round().astype(int))] if len(held) else held
        self.data = HeadFrames(clip, picked, device) if len(held) else None

    @torch.no_grad()
    def score(self, head: Head) -> tuple[float, float]:
        """PSNR (dB) of the head region and of the mouth box, at poses fitted to the pictures."""
        assert self.data is not None
        data, sums = self.data, np.zeros(2)
        for rows in batches(np.arange(len(data)), 8):
            batch = data.batch(rows)
            poses = fit_poses(head, batch, data)
            shown = over(render_head(head, batch.landmarks, poses, data.intrinsics, data.width, data.height), batch.behind)
            mouth = box_mask(batch.landmarks, batch.poses, data.intrinsics, data.width, data.height, LIPS)
            sums += [psnr(shown, batch.frames, mask) * len(rows) for mask in (batch.head, mouth)]
        return sums[0] / len(data), sums[1] / len(data)


def _run(trainer: Trainer, checks: Checks, state: TrainState, quiet: bool) -> dict[str, float]:
    """Take all steps that are left; returns seconds a step and PSNR in dB."""
    steps, board = trainer.config.steps, TensorBoard(state.curves)
    saved, quality, held, first, at_start = time.perf_counter(), 0.0, 0.0, trainer.step, time.perf_counter()
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
            if checks.data is not None and trainer.step % max(1, steps // CHECKS) == 0:
                held, mouth = checks.score(trainer.head)
                board.scalar("psnr/held-out head", held, trainer.step)
                board.scalar("psnr/held-out mouth", mouth, trainer.step)
                trainer.judge(held + mouth)
                if trainer.overfits:
                    break
            now = time.perf_counter()
            if now - saved > trainer.config.save_seconds or trainer.step == steps:
                trainer.save(state)
                saved = now
            bar.update()
    board.close()
    trainer.take_best()
    per_step = (time.perf_counter() - at_start) / max(1, trainer.step - first)
    return {"seconds_per_step": per_step, "train_psnr_db": quality, "val_psnr_db": held}


@torch.no_grad()
def _picture(trainer: Trainer) -> np.ndarray:
    """Render beside truth, uint8, of the frame with the widest mouth."""
    data = trainer.data
    batch = data.batch(np.array([int(np.argmax(data.chance))]))
    rgba = render_head(trainer.head, batch.landmarks, batch.poses, data.intrinsics, data.width, data.height)
    pair = torch.cat([over(rgba, batch.behind), batch.frames], 2)[0]
    return (pair.clamp(0, 1) * 255).round().byte().cpu().numpy()
