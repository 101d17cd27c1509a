"""Training the Gaussian head of one clip."""

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from shared.camera import so3_exp
from shared.checkpoint import load_checkpoint, pack_optimizer, save_checkpoint, unpack_optimizer
from shared.clip import Clip
from shared.config import config_to_dict
from shared.errors import TalkheadError
from shared.metrics import psnr
from shared.training import Scalars, progress
from stage2_gaussian.config import Stage2Config, resolve
from stage2_gaussian.dataset import HeadFrames
from stage2_gaussian.gaussians import make_canonical
from stage2_gaussian.head import Head
from stage2_gaussian.losses import over, picture_losses, pose_prior
from stage2_gaussian.render import render_head, save_head

REPORT_EVERY = 25
PICTURE_EVERY = 250


def refined(poses: Tensor, refinement: Tensor) -> Tensor:
    """poses (B, 4, 4) turned and moved in the camera's frame by refinement (B, 6): radians, tenths of metres."""
    turn, shift = so3_exp(refinement[:, :3]), 0.1 * refinement[:, 3:]
    top = torch.cat([turn @ poses[:, :3, :3], (poses[:, :3, 3] + shift)[..., None]], -1)
    return torch.cat([top, poses[:, 3:]], 1)


def new_head(clip: Clip, indices: np.ndarray, config: Stage2Config) -> Head:
    """An untrained head on the CPU: splats from the frames `indices`, seeded network."""
    start = make_canonical(clip, indices, config.splats, np.random.default_rng(config.seed))
    with torch.random.fork_rng([]):
        torch.manual_seed(config.seed)
        return Head(torch.from_numpy(clip.load_neutral()[0]), *(torch.from_numpy(x) for x in start),
                    moving=config.moving, rank=config.rank, hidden=config.hidden)


class Trainer:
    """Everything that changes while training, and one step of it."""

    def __init__(self, head: Head, data: HeadFrames, config: Stage2Config) -> None:
        self.head, self.data, self.config, self.step = head, data, config, 0
        self.refinement = nn.Parameter(torch.zeros(len(data), 6, device=data.device))
        groups = [
            ([head.positions], config.rate_position),
            ([head.log_scales], config.rate_scale),
            ([head.rotations], config.rate_rotation),
            ([head.opacities], config.rate_opacity),
            ([head.colors], config.rate_color),
            ([head.blend.basis], config.rate_basis),
            (list(head.blend.network.parameters()), config.rate_network),
            (list(head.code.parameters()), config.rate_window),
            ([self.refinement], config.rate_pose),
        ]
        self.rates = [rate for _, rate in groups]
        self.optimizer = torch.optim.Adam([{"params": params, "lr": rate} for params, rate in groups], eps=1e-15,
                                          fused=True)

    def advance(self) -> tuple[dict[str, Tensor], float]:
        """One optimiser step -> its loss terms, detached, and the batch's PSNR when it is due for a report, else 0.

        What it draws depends on seed and step alone.
        """
        config, data = self.config, self.data
        rng = np.random.default_rng([config.seed, self.step])
        rows = data.sample(config.batch, rng)
        batch = data.batch(rows)
        noise = torch.from_numpy(rng.standard_normal(batch.landmarks.shape, np.float32)).to(data.device)
        refinement = self.refinement[torch.from_numpy(rows).to(data.device)]
        factor = config.final_rate ** (self.step / config.steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates):
            group["lr"] = rate * factor
        rgba = render_head(self.head, batch.landmarks + config.landmark_noise * noise, refined(batch.poses, refinement),
                           data.intrinsics, data.width, data.height)
        terms = picture_losses(rgba, batch, ssim_weight=config.ssim_weight, gradient_weight=config.gradient_weight,
                               alpha_weight=config.alpha_weight)
        terms["pose"] = config.pose_weight * pose_prior(refinement)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        self.optimizer.step()
        self.step += 1
        quality = 0.0
        if self.step % REPORT_EVERY == 0:
            quality = psnr(over(rgba.detach(), batch.behind), batch.frames, batch.head)
        return {name: term.detach() for name, term in terms.items()}, quality

    def save(self, path: Path, meta: dict) -> None:
        """Everything needed to go on, atomically."""
        tensors = {f"head/{name}": tensor for name, tensor in self.head.state_dict().items()}
        moments, rest = pack_optimizer(self.optimizer, "optimizer")
        save_checkpoint(path, {**tensors, "refinement": self.refinement, **moments},
                        {**meta, "step": self.step, "optimizer": rest})

    def restore(self, tensors: dict[str, Tensor], meta: dict) -> None:
        """Go on from what `save` wrote."""
        self.head.load_state_dict({name[5:]: tensor for name, tensor in tensors.items() if name.startswith("head/")})
        with torch.no_grad():
            self.refinement.copy_(tensors["refinement"])
        unpack_optimizer(self.optimizer, tensors, meta["optimizer"], "optimizer")
        self.step = meta["step"]


def train(clip: Clip, out: Path, *, config: Stage2Config, device: torch.device, state_dir: Path,
          quiet: bool = False) -> dict[str, float]:
    """Train a head on the train split of `clip` and write it to `out`.

    Killed at any moment, the same call goes on from `state_dir` and ends where it would have ended (bit for bit on a
    CPU). Returns steps, seconds, seconds a step, the last training PSNR in dB (head region) and the file's megabytes.
    Raises TalkheadError for a clip without head pixels or a state left by a training with other settings.
    """
    began = time.perf_counter()
    config = resolve(config, device, clip.info.width, clip.info.height)
    indices = clip.split("train")
    data = HeadFrames(clip, indices, device, mouth_emphasis=config.mouth_emphasis, eye_emphasis=config.eye_emphasis)
    state = state_dir / "state.safetensors"
    meta = {"config": config_to_dict(config), "clip": clip.info.name, "frames": len(indices),
            "intrinsics": list(clip.info.intrinsics), "size": [clip.info.width, clip.info.height]}
    spent = 0.0
    if state.is_file():
        tensors, saved = load_checkpoint(state, device)
        changed = [key for key in meta if saved.get(key) != meta[key]]
        if changed:
            raise TalkheadError(f"{state} was left by a training with another {changed[0]}; repeat that command, or start "
                                "again with --overwrite")
        count = len(tensors["head/positions"])
        head = Head(tensors["head/code.centres"].cpu(), torch.zeros(count, 3), torch.ones(count), torch.zeros(count, 3),
                    moving=config.moving, rank=config.rank, hidden=config.hidden)
        trainer = Trainer(head.to(device), data, config)
        trainer.restore(tensors, saved)
        spent = saved["seconds"]
    else:
        trainer = Trainer(new_head(clip, indices, config).to(device), data, config)
    numbers = _run(trainer, state, meta, Scalars(state_dir), began - spent, quiet)
    save_head(out, trainer.head, meta)
    return {"steps": config.steps, "seconds": time.perf_counter() - began + spent, **numbers,
            "megabytes": out.stat().st_size / 1e6}


def _run(trainer: Trainer, state: Path, meta: dict, scalars: Scalars, began: float, quiet: bool) -> dict[str, float]:
    """All steps that are left; `began` is the clock's reading at a start without interruptions."""
    steps = trainer.config.steps
    saved, quality, first, at_start = time.perf_counter(), 0.0, trainer.step, time.perf_counter()
    with progress(steps, "stage 2", initial=trainer.step, quiet=quiet, unit="step") as bar:
        while trainer.step < steps:
            terms, measured = trainer.advance()
            if measured:
                quality = measured
                for name, term in terms.items():
                    scalars.add(f"loss/{name}", float(term), trainer.step)
                scalars.add("psnr/head", quality, trainer.step)
                bar.set_postfix_str(f"{quality:.2f} dB", refresh=False)
            if trainer.step % PICTURE_EVERY == 0:
                scalars.image("render", _picture(trainer), trainer.step)
            now = time.perf_counter()
            if now - saved > trainer.config.save_seconds or trainer.step == steps:
                trainer.save(state, {**meta, "seconds": now - began})
                saved = now
            bar.update()
    scalars.close()
    per_step = (time.perf_counter() - at_start) / max(1, trainer.step - first)
    return {"seconds_per_step": per_step, "train_psnr": quality}


@torch.no_grad()
def _picture(trainer: Trainer) -> np.ndarray:
    """Render beside truth, uint8, of the frame with the widest mouth."""
    data = trainer.data
    batch = data.batch(np.array([int(np.argmax(data.chance))]))
    rgba = render_head(trainer.head, batch.landmarks, batch.poses, data.intrinsics, data.width, data.height)
    pair = torch.cat([over(rgba, batch.behind), batch.frames], 2)[0]
    return (pair.clamp(0, 1) * 255).round().byte().cpu().numpy()
