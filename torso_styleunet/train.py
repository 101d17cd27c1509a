"""Training the torso of one clip: the plate is built from its frames, then plate and StyleUNet are trained."""

import math
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shared.clip import Clip
from shared.config import config_to_dict
from shared.metrics import psnr
from shared.progress import progress
from shared.resume import Saved, TrainState
from shared.training import TensorBoard, generator
from torso_styleunet import losses
from torso_styleunet.checkpoint import save_torso
from torso_styleunet.config import TorsoConfig, resolve
from torso_styleunet.dataset import Batch, HeadRenderer, TorsoDataset, cache_heads
from torso_styleunet.discriminator import PatchDiscriminator
from torso_styleunet.model import Torso, composite_layers
from torso_styleunet.plate import build_plate
from torso_styleunet.warp import margin_of

BAND = 1 / 48  # half-width of the neck seam and shoulder contour bands, in picture widths
WARM_UP = 20  # steps over which the learning rate rises
REPORT_EVERY = 20  # steps between two points of the curves
PICTURE_EVERY = 200  # steps between two pictures
SHOWN_FRAMES = 16  # training frames whose PSNR is measured at the end
FLOW_UNIT = 100  # offsets are penalised in hundredths of the picture's width


def new_torso(clip: Clip, indices: np.ndarray, poses: np.ndarray, config: TorsoConfig, device: torch.device) -> Torso:
    """An untrained torso: plate and motion statistics from the frames `indices`, at poses (T, 4, 4) of the clip; seeded weights
    and noise."""
    info = clip.info
    motion = torch.from_numpy(clip.load_torso_motion()[indices]).to(device)
    margin = margin_of(motion, info.width, info.height)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        torso = Torso(config, info.width, info.height, margin)
    torso.noise.copy_(torch.randn(torso.noise.shape, generator=generator(config.seed)))
    torso.to(device)
    torso.set_statistics(torch.from_numpy(poses[indices]).to(device), motion,
                         torch.tensor(info.intrinsics, device=device))
    rows = np.unique(np.linspace(0, len(indices) - 1, config.plate_frames).round().astype(int))
    frames = zip(clip.read_frames(indices[rows]), clip.read_labels(indices[rows]))
    with torch.no_grad():
        torso.plate.copy_(build_plate(frames, motion[rows], margin))
    return torso


NAMES = ("l1", "laplacian", "temporal", "alpha", "flow")


class TorsoLoss(nn.Module):
    """Weighted loss terms of one batch; a module, so that on CUDA it is captured as a graph."""

    def __init__(self, torso: Torso, config: TorsoConfig) -> None:
        super().__init__()
        self.torso, self.config = torso, config

    def forward(self, frames: Tensor, labels: Tensor, heads: Tensor, backgrounds: Tensor, poses: Tensor,
                motion: Tensor) -> tuple[Tensor, Tensor]:
        """The fields of `Batch` -> terms of NAMES (5,), and the composited frames (B, 3, H, W)."""
        config = self.config
        with torch.autocast(heads.device.type, torch.bfloat16, enabled=heads.is_cuda, cache_enabled=False):
            straight, flow = self.torso(heads, poses, motion)
        layer = torch.cat([straight[:, :3], torch.sigmoid(straight[:, 3:])], 1)
        picture = composite_layers(heads, layer, backgrounds)
        where = losses.regions(labels, max(1, round(BAND * self.torso.width)))
        weights = 1 + config.region_weight * torch.maximum(where.contour, where.seam)
        difference = picture - frames
        return torch.stack([
            losses.weighted_mean(difference.abs(), weights),
            config.laplacian_weight * losses.laplacian_l1(difference, weights),
            config.temporal_weight * losses.temporal_l1(difference, weights),
            config.alpha_weight * losses.alpha_loss(straight[:, 3:], where),
            config.flow_weight * (flow * (FLOW_UNIT / self.torso.width)).square().mean(),
        ]), picture


class Trainer:
    """Everything that changes while training, and one step of it."""

    def __init__(self, torso: Torso, data: TorsoDataset, config: TorsoConfig) -> None:
        self.torso, self.data, self.config, self.step = torso, data, config, 0
        self.loss: Any = TorsoLoss(torso, config)
        self.captured = False
        rate = config.learning_rate
        self.rates = [rate, rate * config.plate_rate]
        self.optimizer = torch.optim.Adam(torso.generator.parameters(), lr=rate, betas=(0.9, 0.99), fused=True)
        self.optimizer.add_param_group({"params": [torso.plate]})
        self.discriminator: PatchDiscriminator | None = None
        if config.adversarial_weight > 0:
            with torch.random.fork_rng([data.device] if data.device.type == "cuda" else []):
                torch.manual_seed(config.seed + 1)
                self.discriminator = PatchDiscriminator().to(data.device)
            self.discriminator_optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=rate, betas=(0.0, 0.99))

    def advance(self) -> dict[str, Tensor]:
        """Take one optimiser step; returns its loss terms, detached. Random numbers depend on seed and step alone."""
        config = self.config
        rng = np.random.default_rng([config.seed, self.step])
        batch = self.data.batch(self.data.pairs(config.batch // 2, rng))
        factor = min(1.0, (self.step + 1) / WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * self.step / config.steps))
        for group, rate in zip(self.optimizer.param_groups, self.rates):
            group["lr"] = rate * factor
        if self.data.device.type == "cuda" and not self.captured:
            self._capture(batch)
        found, picture = self.loss(*batch)
        terms, total = dict(zip(NAMES, found.detach())), found.sum()
        if self.discriminator is not None:
            head = losses.regions(batch.labels, 1).head
            shown = torch.lerp(picture, batch.frames, head)  # the discriminator must not tell by the rendered head
            terms["adversarial"] = config.adversarial_weight * losses.generator_adversarial(self.discriminator(shown))
            total = total + terms["adversarial"]
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.torso.generator.parameters(), 1.0)
        self.optimizer.step()
        if self.discriminator is not None:
            terms["discriminator"] = self._train_discriminator(self.discriminator, batch, shown.detach())
        self.step += 1
        return {name: term.detach() for name, term in terms.items()}

    def _capture(self, batch: Batch) -> None:
        """Capture the loss as a CUDA graph: some two thousand small kernels in two launches."""
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)  # it is captured on a side stream
        example = tuple(tensor.clone() for tensor in batch)
        self.loss = torch.cuda.make_graphed_callables(self.loss, example, allow_unused_input=True)
        self.captured = True

    def _train_discriminator(self, discriminator: PatchDiscriminator, batch: Batch, shown: Tensor) -> Tensor:
        """One step of the discriminator, with R1 every `r1_every` steps (lazy regularisation, StyleGAN2)."""
        lazy = self.step % self.config.r1_every == 0
        real = batch.frames.detach().requires_grad_(lazy)
        real_logits = discriminator(real)
        loss = losses.discriminator_adversarial(real_logits, discriminator(shown))
        total = loss
        if lazy:
            total = loss + self.config.r1_weight * self.config.r1_every * losses.r1_penalty(real, real_logits)
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.discriminator_optimizer.step()
        return loss

    def save(self, state: TrainState) -> None:
        """Save everything needed to go on."""
        groups, optimizers = {"torso": self.torso.state_dict()}, {"optimizer": self.optimizer}
        if self.discriminator is not None:
            groups["discriminator"] = self.discriminator.state_dict()
            optimizers["discriminator_optimizer"] = self.discriminator_optimizer
        state.save(groups, optimizers, step=self.step)

    def restore(self, saved: Saved) -> None:
        """Go on from what `save` wrote."""
        self.torso.load_state_dict(saved.group("torso"))
        saved.restore_optimizer("optimizer", self.optimizer)
        if self.discriminator is not None:
            self.discriminator.load_state_dict(saved.group("discriminator"))
            saved.restore_optimizer("discriminator_optimizer", self.discriminator_optimizer)
        self.step = saved.progress["step"]


@torch.no_grad()
def _composite(torso: Torso, batch: Batch) -> tuple[Tensor, float]:
    """Composited frames (B, 3, H, W) of a batch and their PSNR."""
    with torch.autocast(batch.heads.device.type, torch.bfloat16, enabled=batch.heads.is_cuda):
        straight, _ = torso(batch.heads, batch.poses, batch.motion)
    torso_layer = torch.cat([straight[:, :3].clamp(0, 1), torch.sigmoid(straight[:, 3:])], 1)
    picture = composite_layers(batch.heads, torso_layer, batch.backgrounds).clamp(0, 1)
    return picture, float(psnr(picture.permute(0, 2, 3, 1), batch.frames.permute(0, 2, 3, 1)))


def train(clip: Clip, head_renderer: HeadRenderer, out: Path, *, config: TorsoConfig, device: torch.device,
          state_dir: Path, poses: np.ndarray | None = None, head: str = "", quiet: bool = False) -> dict[str, float]:
    """Train on the train split of `clip` and write the torso to `out`.

    `head_renderer` maps frame indices (B,) to rendered heads (B, H, W, 4), premultiplied float RGBA; every frame is rendered
    once and cached in `state_dir` during training. `poses` (T, 4, 4) are the poses that it renders at, by default the tracked
    ones; `head` is the hash of the head. Killed at any moment, the same call continues from `state_dir` and ends as if it had
    never stopped. Returns steps, seconds, the last loss and the PSNR of SHOWN_FRAMES training frames in dB. Raises
    TalkheadError for an empty split, labels without a torso or a state of another training.
    """
    device = torch.device(device)
    config = resolve(config, device)
    indices = clip.split("train")
    poses = clip.load_poses() if poses is None else poses
    state = TrainState(state_dir, {"clip": clip.fingerprint(), "settings": config_to_dict(config), "head": head,
                                   "poses": sha256(np.ascontiguousarray(poses).tobytes()).hexdigest()})
    saved = state.load(device)
    cache = state_dir / f"heads-{state.fingerprint('clip', 'head', 'poses')[:16]}.npy"
    for other in state_dir.glob("heads*.npy"):
        if other != cache:
            other.unlink()
    heads = cache_heads(head_renderer, indices, clip.info.height, clip.info.width, cache, quiet)
    data = TorsoDataset(clip, indices, heads, poses, device)
    trainer = Trainer(new_torso(clip, indices, poses, config, device), data, config)
    if saved is not None:
        trainer.restore(saved)

    shown = data.batch(np.linspace(0, len(data) - 1, min(SHOWN_FRAMES, len(data))).round().astype(int))
    board = TensorBoard(state.curves)
    last_save = time.monotonic()
    loss = math.nan
    with progress(config.steps, "torso", trainer.step, quiet) as bar:
        while trainer.step < config.steps:
            terms = trainer.advance()
            bar.update()
            if trainer.step % REPORT_EVERY == 0 or trainer.step == config.steps:
                values = {name: float(term) for name, term in terms.items()}
                loss = sum(value for name, value in values.items() if name != "discriminator")
                bar.set_postfix(loss=f"{loss:.4f}")
                for name, value in {**values, "loss": loss}.items():
                    board.scalar(f"torso/{name}", value, trainer.step)
            if trainer.step % PICTURE_EVERY == 0:
                picture, quality = _composite(trainer.torso, Batch(*(tensor[:1] for tensor in shown)))
                pair = torch.cat([picture[0], shown.frames[0]], -1)
                board.image("torso/composite_true", (pair * 255).byte().permute(1, 2, 0).cpu().numpy(), trainer.step)
                board.scalar("torso/psnr", quality, trainer.step)
            if time.monotonic() - last_save >= config.save_seconds:
                trainer.save(state)
                last_save = time.monotonic()
    quality = float(np.mean([_composite(trainer.torso, Batch(*(t[k : k + 1] for t in shown)))[1]
                             for k in range(len(shown.frames))]))
    board.close()
    save_torso(out, trainer.torso, {"step": trainer.step, "clip": clip.info.name})
    state.remove()
    del heads, data.heads
    cache.unlink(missing_ok=True)
    return {"steps": trainer.step, "seconds": state.seconds, "loss": loss, "train_psnr_db": quality}
