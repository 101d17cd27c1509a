"""What the mark says, and how its 48 bits are spread over the cells of the pattern."""

import hashlib
import json
from binascii import crc_hqx
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from shared.avatar import AvatarInfo

VERSION = 1
SEED = b"talkhead mark 1"  # public: who knows it can read the mark, and also remove it
CELLS = 32  # of the pattern along each side of the picture
PILOTS = 256  # cells that are the same in every mark; by them it is found
SYMBOLS, CHIPS = 6, 128  # bytes of a message, and signs that each is sent as
DATA = CELLS * CELLS - PILOTS
SEQUENCE = SYMBOLS * CHIPS  # signs of a message; each is sent twice


@dataclass(frozen=True)
class Payload:
    """`avatar`: 28 bits that tell one avatar from another, see `avatar_id`; `version` of the mark, 4 bits."""

    avatar: int
    version: int = VERSION

    def to_bytes(self) -> bytes:
        """6 bytes: version and avatar, highest bit first, and the CRC-16-CCITT (start 0xffff) of these four."""
        head = (self.version << 28 | self.avatar).to_bytes(4, "big")
        return head + crc_hqx(head, 0xFFFF).to_bytes(2, "big")

    @classmethod
    def from_bytes(cls, message: bytes) -> "Payload | None":
        """What `to_bytes` gave; None for a wrong check or an unknown version."""
        head, check = int.from_bytes(message[:4], "big"), int.from_bytes(message[4:], "big")
        if crc_hqx(message[:4], 0xFFFF) != check or head >> 28 != VERSION:
            return None
        return cls(head & 0xFFFFFFF)


def avatar_id(info: AvatarInfo) -> int:
    """28 bits that stay as long as the avatar is trained on the same clip, through new trainings and edits.

    The first 28 bits of the SHA-256 of the identities of its parts' clips; for avatars of the time before these were noted,
    of its name, size and camera.
    """
    source: list[object] = [*sorted({known["clip"] for known in info.parts.values()})]
    source = source or [info.name, info.width, info.height, info.intrinsics]
    return int.from_bytes(hashlib.sha256(json.dumps(source).encode()).digest()[:4], "big") >> 4


class Layout(NamedTuple):
    """Which cell has which task. order (1024,): cells by rank, the first PILOTS of them pilots, the others data; signs (1024, 2),
    ±1: scrambling of the cosine and the sine of each cell, by its place row by row."""

    order: np.ndarray
    signs: np.ndarray


@cache
def layout() -> Layout:
    """The layout, drawn from SEED by SHAKE-256: a key of four bytes a cell, by which they are ranked, then a byte a cell, whose
    two lowest bits are the signs."""
    count = CELLS * CELLS
    drawn = hashlib.shake_256(SEED).digest(5 * count)
    keys = np.frombuffer(drawn[: 4 * count], ">u4")
    bits = np.frombuffer(drawn[4 * count :], np.uint8)
    return Layout(np.argsort(keys, kind="stable"), 1.0 - 2.0 * np.stack([bits & 1, bits >> 1 & 1], -1))


@cache
def codewords() -> np.ndarray:
    """(128, 128), ±1: the Hadamard matrix by Sylvester; byte b is sent as row b % 128, and with the other sign if b ≥ 128."""
    rows = np.ones((1, 1))
    while len(rows) < CHIPS:
        rows = np.block([[rows, rows], [rows, -rows]])
    return rows


def cells(payload: Payload) -> np.ndarray:
    """Payload -> complex (32, 32), each ±1 ± i: what the cells' cosine (real) and sine (imaginary) are multiplied with."""
    message = np.frombuffer(payload.to_bytes(), np.uint8)
    sequence = (codewords()[message % CHIPS] * np.where(message < CHIPS, 1, -1)[:, None]).ravel()
    order, signs = layout()
    values = np.ones((CELLS * CELLS, 2))
    place = np.arange(DATA)
    values[order[PILOTS:]] = np.stack([sequence[place], sequence[(place + SEQUENCE // 2) % SEQUENCE]], -1)
    values *= signs
    return (values[:, 0] + 1j * values[:, 1]).reshape(CELLS, CELLS)


def messages(data: np.ndarray) -> list[bytes]:
    """Received data cells (768,) complex, in rank order and unscrambled -> 6-byte messages, the likeliest first.

    Each byte by the largest correlation with its codewords; the others take the second largest for one or more bytes.
    """
    sequence = data.real + np.roll(data.imag, SEQUENCE // 2)
    matches = sequence.reshape(SYMBOLS, CHIPS) @ codewords()
    both = np.concatenate([matches, -matches], 1)  # by the byte's value
    best = np.argsort(-both, 1)[:, :2]
    losses = np.take_along_axis(both, best, 1) @ [1, -1]
    choices = np.array([[choice >> k & 1 for k in range(SYMBOLS)] for choice in range(1 << SYMBOLS)])
    ranked = choices[np.argsort(choices @ losses, kind="stable")]
    return [bytes(best[np.arange(SYMBOLS), choice].astype(np.uint8)) for choice in ranked]
