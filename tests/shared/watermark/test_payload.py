import dataclasses

import numpy as np
import pytest

from shared.avatar import AvatarInfo
from shared.watermark.payload import CELLS, DATA, PILOTS, Payload, avatar_id, cells, codewords, layout, messages

INFO = AvatarInfo("Jane", 256, 256, (500.0, 500.0, 128.0, 128.0), 25)


def received(payload: Payload) -> np.ndarray:
    """Data cells in rank order, unscrambled, without noise."""
    order, signs = layout()
    values = cells(payload).ravel()
    return (values.real * signs[:, 0] + 1j * values.imag * signs[:, 1])[order[PILOTS:]]


@pytest.mark.parametrize("avatar", [0, 1, 0xABCDEF0, (1 << 28) - 1])
def test_a_message_goes_through_the_cells_and_back(avatar):
    payload = Payload(avatar)
    assert len(payload.to_bytes()) == 6
    first = messages(received(payload))[0]
    assert first == payload.to_bytes() and Payload.from_bytes(first) == payload


def test_the_check_refuses_every_single_wrong_bit_and_other_versions():
    message = Payload(0x1234567).to_bytes()
    for bit in range(48):
        wrong = (int.from_bytes(message, "big") ^ 1 << bit).to_bytes(6, "big")
        assert Payload.from_bytes(wrong) is None
    assert Payload.from_bytes(Payload(5, version=2).to_bytes()) is None


def test_random_messages_pass_as_rarely_as_the_check_says():
    rng = np.random.default_rng(0)
    passed = sum(Payload.from_bytes(rng.bytes(6)) is not None for _ in range(50_000))
    assert passed <= 2  # 0.05 expected


def test_messages_survive_noise_and_a_second_best_byte():
    payload, rng = Payload(0xBEEF123), np.random.default_rng(1)
    clean = received(payload)
    noisy = clean + 2.5 * (rng.normal(size=DATA) + 1j * rng.normal(size=DATA))
    assert ((noisy.real > 0) == (clean.real > 0)).mean() < 0.7  # of its single signs a third is wrong
    assert messages(noisy)[0] == payload.to_bytes()
    drowned = clean + 4.2 * (rng.normal(size=DATA) + 1j * rng.normal(size=DATA))
    assert len({*messages(drowned)}) == 64


def test_codewords_are_orthogonal_and_the_layout_uses_every_cell_once():
    assert (codewords() @ codewords().T == 128 * np.eye(128)).all()
    order, signs = layout()
    assert sorted(order) == list(range(CELLS * CELLS)) and {*np.unique(signs)} == {-1.0, 1.0}
    assert list(order[:6]) == [55, 863, 255, 311, 780, 83]  # the definition, for ever


def test_the_id_of_an_avatar_stays_through_training_and_tells_clips_apart():
    def of(clip: str, sha: str) -> AvatarInfo:
        return dataclasses.replace(INFO, parts={"stage1": {"sha256": sha, "clip": clip, "name": "a"}})

    assert avatar_id(of("c1", "x")) == avatar_id(of("c1", "y")) != avatar_id(of("c2", "x"))
    assert 0 <= avatar_id(INFO) < 1 << 28 and avatar_id(INFO) != avatar_id(dataclasses.replace(INFO, name="Joan"))
