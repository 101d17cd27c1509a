"""How alike two moments sound: shape of the spectrum times loudness, over three time scales.

Exact kernel regression (Saunders et al. 1998, Schölkopf and Smola 2002) on a minute of one voice: every frame heard in
training is a centre, and a new moment moves the lips as the moments that sound like it did.
"""

import torch
from torch import Tensor, nn

from stage1_audio2lmk.features import MELS

LINEAR = 0.3  # share of the linear kernel
SHARE = 0.4  # of each time scale
# frames back of the window of shapes, its sharpness; frames back of the window of loudness, its sharpness
SCALES = ((4, 1.0, 4, 0.3), (1, 0.7, 4, 0.3), (0, 0.7, 1, 0.3))
EMBEDDING = 1.0  # sharpness of what an encoder adds

Table = list[tuple[Tensor, Tensor]]


class SoundKernel(nn.Module):
    """Windows of pooled log-mel (..., past + 1 + ahead, 80) -> likeness (..., m) to each of the m centres.

    With `size` > 0 an embedding (..., size) of the moment by an encoder is compared too, with weight `share`.
    """

    centres: Tensor
    embedded: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, count: int, past: int, ahead: int, size: int = 0, share: float = 0.0) -> None:
        super().__init__()
        self.past, self.taps, self.share = past, past + 1 + ahead, share if size else 0.0
        self.register_buffer("centres", torch.zeros(count, self.taps, MELS, dtype=torch.float16))
        self.register_buffer("embedded", torch.zeros(count, size, dtype=torch.float16))
        self.register_buffer("mean", torch.zeros(2 * MELS + 1))
        self.register_buffer("scale", torch.ones(2 * MELS + 1))

    def set_statistics(self, pooled: Tensor) -> None:
        """Mean and scale of log-mel, shape and loudness over the rows (n, 80) of the training data."""
        parts = torch.cat([pooled, pooled - pooled.mean(-1, keepdim=True), pooled.mean(-1, keepdim=True)], -1)
        self.mean.copy_(parts.mean(0))
        self.scale.copy_(parts.std(0).clamp_min(0.05))

    def set_centres(self, windows: Tensor, embedding: Tensor | None = None) -> None:
        """Make windows (m, taps, 80) and, where there is an encoder, embeddings (m, size) the centres."""
        self.centres = windows.to(self.centres)
        self.embedded = self.embedded.new_zeros(len(windows), 0) if embedding is None else embedding.to(self.embedded)

    def points(self, windows: Tensor, embedding: Tensor | None = None) -> list[Tensor]:
        """Vectors (..., d) of moments: the first for the linear kernel, the others so that a scale is exp(−|a − b|²)."""
        loud = windows.mean(-1, keepdim=True)
        mel, shape, loud = ((torch.cat([windows, windows - loud, loud], -1) - self.mean) / self.scale).split((MELS, MELS, 1), -1)
        found = [self._scaled(mel, LINEAR)]
        for shape_back, shape_sharpness, loud_back, loud_sharpness in SCALES:
            near = self._scaled(shape[..., self._from(shape_back) :, :], shape_sharpness)
            found.append(torch.cat([near, self._scaled(loud[..., self._from(loud_back) :, :], loud_sharpness)], -1))
        if self.share:
            assert embedding is not None
            found.append(embedding * (EMBEDDING / embedding.shape[-1]) ** 0.5)
        return found

    def _from(self, back: int) -> int:
        return self.past - min(back, self.past)

    @staticmethod
    def _scaled(x: Tensor, weight: float) -> Tensor:
        flat = x.flatten(-2)
        return flat * (weight / flat.shape[-1]) ** 0.5

    def table(self) -> Table:
        """The centres' vectors and their squared lengths, for many calls of `forward`."""
        return [(x, x.square().sum(-1)) for x in self.points(self.centres.float(), self.embedded.float())]

    def forward(self, windows: Tensor, embedding: Tensor | None = None, table: Table | None = None) -> Tensor:
        table = self.table() if table is None else table
        points = self.points(windows, embedding)
        total = points[0] @ table[0][0].T
        shares = [SHARE] * len(SCALES) + [self.share]
        for share, x, (centre, length) in zip(shares, points[1:], table[1:]):
            distance = x.square().sum(-1, keepdim=True) + length - 2 * x @ centre.T
            total = total + share * torch.exp(-distance.clamp_min(0))
        return total
