"""Attention against loops over rows and heads, and in pieces against all at once."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stage1_audio2lmk.transformer import (
    ROOM,
    Block,
    KVCache,
    Past,
    RowBlock,
    Transformer,
    norm_of,
    product_of,
    rotate,
    turn_back,
)

DIM, HEADS, WINDOW = 24, 2, 6


def rows(count: int, batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, count, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def transformer() -> Transformer:
    """Two blocks in double precision whose every weight is random."""
    made = Transformer(2, DIM, HEADS, WINDOW, dropout=0.0).double()
    rng = torch.Generator().manual_seed(1)
    for value in made.parameters():
        torch.nn.init.normal_(value, std=0.3, generator=rng)
    return made


def in_pieces(transformer: Transformer, x: Tensor, sizes: list[int]) -> tuple[Tensor, KVCache]:
    out: list[Tensor] = []
    cache: KVCache = []
    for part in x.split(sizes, 1):
        part, cache = transformer(part, cache)
        out.append(part)
    return torch.cat(out, 1), cache


def looked_back_on(past: Past) -> tuple[Tensor, Tensor]:
    """Keys and values of the last window − 1 rows, positions from 0 on."""
    front = past.moved(WINDOW, 0)
    return front.keys, front.values


def slow_block(block: Block, x: Tensor) -> Tensor:
    """(T, dim) -> (T, dim), a row and a head at a time; positions turn pairs of numbers, here complex ones."""
    count, size = len(x), DIM // HEADS
    half = size // 2
    q, k, v = (F.linear(F.layer_norm(x, (DIM,), block.norm_attention.weight, block.norm_attention.bias), w, b)
               for w, b in zip(block.qkv.weight.chunk(3), block.qkv.bias.chunk(3)))
    frequency = torch.tensor([10000 ** (-j / half) for j in range(half)], dtype=torch.float64)

    def turned(row: Tensor, t: int) -> Tensor:
        return torch.complex(row[:half], row[half:]) * torch.exp(1j * frequency * t)

    mixed = torch.zeros_like(x)
    for t in range(count):
        for h in range(HEADS):
            part = slice(h * size, (h + 1) * size)
            seen = range(max(0, t - WINDOW + 1), t + 1)
            scores = torch.stack([(turned(q[t, part], t) * turned(k[s, part], s).conj()).real.sum() for s in seen]) / size**0.5
            mixed[t, part] = scores.softmax(0) @ v[list(seen), part]
    x = x + block.out(mixed)
    return x + block.feed(F.layer_norm(x, (DIM,), block.norm_feed.weight, block.norm_feed.bias))


@torch.no_grad()
def test_a_block_is_masked_attention(transformer: Transformer) -> None:
    x = rows(17)
    out, _ = transformer[0](x)
    for found, row in zip(out, x):
        torch.testing.assert_close(found, slow_block(transformer[0], row), atol=1e-6, rtol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[1] * 23, [2, 21], [22, 1], [5, 5, 5, 5, 3], [6, 1, 6, 1, 9], [1, 4, 17, 1], [0, 23]])
def test_pieces_of_any_size_equal_one_pass(transformer: Transformer, sizes: list[int]) -> None:
    x = rows(23)
    whole, after = transformer(x)
    parts, cache = in_pieces(transformer, x, sizes)
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-6)
    for ours, theirs in zip(cache, after):
        for found, known in zip(looked_back_on(ours), looked_back_on(theirs)):
            torch.testing.assert_close(found, known)
            assert found.shape == (2, HEADS, WINDOW - 1, DIM // HEADS)


@torch.no_grad()
def test_the_cache_is_all_that_the_next_rows_need_and_no_more(transformer: Transformer) -> None:
    """Two blocks of window 6 reach ten rows back; each caches five."""
    x = rows(30)
    changed = x.clone()
    changed[:, 7] += 1
    difference = (transformer(x)[0] - transformer(changed)[0]).abs().amax((0, 2))
    assert difference[:7].max() == 0 and difference[7 : 7 + 2 * WINDOW - 1].min() > 0
    assert difference[7 + 2 * WINDOW - 1 :].max() == 0
    for count in (1, 4, 5, 6, 29):
        assert [looked_back_on(kept)[0].shape[2] for kept in transformer(x[:, :count])[1]] == [min(count, WINDOW - 1)] * 2


@torch.no_grad()
def test_a_window_of_one_caches_nothing() -> None:
    block = Block(DIM, HEADS, 1, 0.0).double()
    x = rows(8)
    whole, kept = block(x)
    assert kept.moved(1, 0).used == 0
    torch.testing.assert_close(torch.cat([block(row, kept)[0] for row in x.split(1, 1)], 1), whole)


@pytest.mark.slow
@torch.inference_mode()
def test_after_an_hour_rows_are_as_exact_as_at_once(transformer: Transformer) -> None:
    """90,000 frames in pieces of one to seven, in single precision; two blocks of window 6 reach ten rows back."""
    plain = copy.deepcopy(transformer).float()
    cache: KVCache = []
    sizes = np.random.default_rng(0).integers(1, 8, 22_500)
    last = rows(40, batch=1).float()
    for size in sizes:
        _, cache = plain(last[:, :size], cache)
        assert max(past.used for past in cache) <= cache[0].keys.shape[2] <= ROOM * WINDOW
    found = []
    for row in last.split(1, 1):
        out, cache = plain(row, cache)
        found.append(out)
    whole, _ = plain(last)
    torch.testing.assert_close(torch.cat(found, 1)[:, 2 * WINDOW :], whole[:, 2 * WINDOW :], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_rows_with_a_past_are_written_in_place(transformer: Transformer) -> None:
    x = rows(9)
    _, cache = transformer(x[:, :1])
    places = [past.keys.data_ptr() for past in cache]
    for row in x[:, 1:].split(1, 1):
        _, cache = transformer(row, cache)
    assert [past.keys.data_ptr() for past in cache] == places


@torch.inference_mode()
@pytest.mark.parametrize("halves", [True, False])
@pytest.mark.parametrize("first", [1, WINDOW, ROOM * WINDOW, ROOM * WINDOW + 5])
def test_single_rows_of_a_block_are_its_rows(transformer: Transformer, halves: bool, first: int) -> None:
    """After a piece that fits into the cache or does not, past its end twice, and again a piece at the end."""
    block = copy.deepcopy(transformer[0]).float()
    if halves:
        block.half().float()
    x = rows(first + 2 * ROOM * WINDOW + 7, batch=1).float()
    whole, _ = block(x)
    single, (out, past) = RowBlock(block), block(x[:, :first])
    found = [out]
    for t in range(first, x.shape[1] - 3):
        row, past = single(x[0, t : t + 1], past)
        found.append(row[None])
    found.append(block(x[:, -3:], past)[0])
    torch.testing.assert_close(torch.cat(found, 1), whole, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("halves", [True, False])
@pytest.mark.parametrize("shape", [(24, 72), (1, 1), (385, 129)])
def test_products_with_halves_are_products(shape: tuple[int, int], halves: bool) -> None:
    """Also where they come from numbers too small for a normal half, and where not all are halves: those are not rounded."""
    rng = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(*size, generator=rng) for size in (shape, shape[:1], (3, shape[1])))
    weight[0, 0] = 3e-6
    weight = weight.half().float() if halves else weight
    expected = (x.double() @ weight.double().T + bias.double()).float()
    product = product_of(weight, bias)
    for count in (1, 3):
        torch.testing.assert_close(product(x[:count]), expected[:count], atol=2e-5, rtol=1e-6)


@torch.inference_mode()
def test_a_norm_without_its_module(transformer: Transformer) -> None:
    norm = transformer[0].norm_feed
    torch.testing.assert_close(norm_of(norm)(rows(3)), norm(rows(3)), atol=0, rtol=0)


def test_positions_are_exact_far_out() -> None:
    x = torch.randn(1, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    frequency = 10000 ** (-np.arange(8) / 8)
    turned = torch.complex(x[:, :8], x[:, 8:]) * torch.exp(1j * torch.from_numpy(frequency * 123_456))
    known = torch.cat([turned.real, turned.imag], 1)
    torch.testing.assert_close(rotate(x.float(), 123_456), known.float(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(turn_back(rotate(x.float(), 123_456), 123_456), x.float(), atol=1e-6, rtol=1e-6)


def test_gradients_flow_through_pieces_as_through_the_whole(transformer: Transformer) -> None:
    goal = rows(12, seed=5)
    found = []
    for sizes in ([12], [5, 1, 6]):
        x = rows(12).requires_grad_()
        loss = ((in_pieces(transformer, x, sizes)[0] - goal) ** 2).sum()
        found.append(torch.autograd.grad(loss, [x, *transformer.parameters()]))
    for whole, parts in zip(*found):
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-5)
        assert whole.abs().max() > 0


def test_gradients_are_those_of_finite_differences(transformer: Transformer) -> None:
    x, goal, step = rows(9, batch=1), rows(9, batch=1, seed=5), 1e-5

    def cost(x: Tensor) -> Tensor:
        return ((in_pieces(transformer, x, [4, 5])[0] - goal) ** 2).sum()

    gradient = torch.autograd.grad(cost(x.requires_grad_()), x)[0]
    for t, d in ((0, 3), (3, 0), (4, 10), (8, 23)):
        moved = torch.zeros_like(x)
        moved[0, t, d] = step
        with torch.no_grad():
            slope = (cost(x + moved) - cost(x - moved)) / (2 * step)
        assert float(gradient[0, t, d]) == pytest.approx(float(slope), rel=1e-4)


def test_dropout_only_while_training() -> None:
    block, x = Block(DIM, HEADS, WINDOW, 0.5).double(), rows(5)
    assert not torch.equal(block(x)[0], block(x)[0])
    assert torch.equal(block.eval()(x)[0], block(x)[0])


def test_training_may_follow_inference() -> None:
    """The cosines are made once, maybe in inference mode; gradients must go through them later."""
    x = torch.randn(1, 1, 29, 14, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        rotate(x)
    x.requires_grad_()
    rotate(x).square().sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), 2 * x.detach().numpy(), rtol=1e-4, atol=1e-5)  # turns keep lengths


def test_rotary_products_depend_on_distance_only() -> None:
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0))
    a, b = (rotate(x.expand(1, 1, 30, 16))[0, 0] for x in (q, k))
    products = a @ b.T
    for distance in (0, 3, 11):
        line = torch.diagonal(products, -distance)
        torch.testing.assert_close(line, line[:1].expand_as(line), atol=1e-4, rtol=1e-4)
    assert (products[20, 20] - products[20, 10]).abs() > 1e-3
