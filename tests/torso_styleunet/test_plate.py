import numpy as np
import pytest
import torch

from shared.clip import Clip
from shared.errors import TalkheadError
from torso_styleunet import plate as plate_module
from torso_styleunet.plate import agreeing, build_plate, masked_median, push_pull
from torso_styleunet.warp import frame_to_plate, margin_of, pixel_centres, plate_to_frame, sample, warp_field


def warp_plate(plate: torch.Tensor, motion: torch.Tensor, width: int, height: int, margin: int) -> torch.Tensor:
    """Plate (C, h, w) with its margin, motion (B, 4) -> (B, C, H, W): the plate as the frames see it."""
    points = pixel_centres(height, width, plate.device)
    return sample(plate, frame_to_plate(points.expand(len(motion), -1, -1, -1), motion, width, height), margin)


def slow_warp(image: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """For every pixel of the frame: undo the similarity, look up with bilinear weights, repeat the border."""
    height, width, _ = image.shape
    dx, dy, angle, scale = motion
    centre = np.array([width / 2, height / 2])
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    out = np.zeros_like(image)
    for i in range(height):
        for j in range(width):
            p = centre + rotation.T @ (np.array([j + 0.5, i + 0.5]) - centre - (dx, dy)) / scale - 0.5
            x, y = np.clip(p[0], 0, width - 1), np.clip(p[1], 0, height - 1)
            x0, y0 = min(int(x), width - 2), min(int(y), height - 2)
            a, b = x - x0, y - y0
            out[i, j] = ((1 - a) * (1 - b) * image[y0, x0] + a * (1 - b) * image[y0, x0 + 1]
                         + (1 - a) * b * image[y0 + 1, x0] + a * b * image[y0 + 1, x0 + 1])
    return out


@pytest.mark.parametrize("motion", [(0, 0, 0, 1), (3.4, -2.2, 0.2, 1.1), (-5.0, 4.0, -0.4, 0.9)])
def test_warp_equals_a_loop_over_pixels(motion: tuple[float, ...]) -> None:
    image = np.random.default_rng(0).random((14, 18, 3)).astype(np.float32)
    plate = torch.from_numpy(image).permute(2, 0, 1)
    warped = warp_plate(plate, torch.tensor([motion]), 18, 14, 0)[0].permute(1, 2, 0)
    np.testing.assert_allclose(warped, slow_warp(image, np.array(motion)), atol=2e-5)


def test_points_follow_the_formula_and_come_back() -> None:
    motion = torch.tensor([[4.0, -3.0, 0.3, 1.2], [0.0, 1.0, -0.1, 0.8]])
    points = torch.rand(2, 5, 2, generator=torch.Generator().manual_seed(0)) * 60
    there = plate_to_frame(points, motion, 60, 40)
    dx, dy, angle, scale = motion[0].tolist()
    rotation = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], dtype=torch.float32)
    centre = torch.tensor([30.0, 20.0])
    torch.testing.assert_close(there[0, 0], centre + scale * rotation @ (points[0, 0] - centre) + motion[0, :2])
    torch.testing.assert_close(frame_to_plate(there, motion, 60, 40), points, rtol=1e-4, atol=1e-4)


def bent(seed: int, pixels: float, n: int = 5) -> torch.Tensor:
    """Motions (2, 4 + 2·n²) with smooth random warps of about `pixels`."""
    rng = torch.Generator().manual_seed(seed)
    warp = torch.nn.functional.interpolate(torch.randn(2, 2, 3, 3, generator=rng), size=n, mode="bilinear", align_corners=True)
    similarity = torch.tensor([[4.0, -3.0, 0.3, 1.2], [0.0, 1.0, -0.1, 0.8]])
    return torch.cat([similarity, pixels * warp.permute(0, 2, 3, 1).flatten(1)], 1)


def test_the_warp_is_the_spline_of_its_control_points() -> None:
    motion, width, height = bent(0, 3.0), 60, 40
    field = warp_field(motion, width, height)
    control = motion[:, 4:].reshape(2, 5, 5, 2).numpy().astype(float)

    def basis(k: int, u: float) -> float:
        """Cox–de Boor on the knots 0, 1, …: the quadratic basis function that begins at knot k - 2."""
        def part(i: int, degree: int) -> float:
            if degree == 0:
                return float(i <= u < i + 1)
            return (u - i) / degree * part(i, degree - 1) + (i + degree + 1 - u) / degree * part(i + 1, degree - 1)
        return part(k - 2, 2)

    for y, x in ((0, 0), (17, 31), (39, 59), (20, 19)):
        u, v = (x + 0.5) / width * 3, (y + 0.5) / height * 3
        slow = sum(basis(i, v) * basis(j, u) * control[:, i, j] for i in range(5) for j in range(5))
        np.testing.assert_allclose(field[:, :, y, x], slow, atol=1e-4)
    torch.testing.assert_close(warp_field(torch.cat([motion[:, :4], torch.ones(2, 50)], 1), 60, 40), torch.ones(2, 2, 40, 60))


def test_warped_points_come_back_and_a_zero_warp_changes_no_bit() -> None:
    motion = bent(1, 2.0)
    points = torch.rand(2, 7, 9, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([60.0, 40.0])
    there = plate_to_frame(points, motion, 60, 40)
    assert (there - plate_to_frame(points, motion[:, :4], 60, 40)).norm(dim=-1).mean() > 0.5
    torch.testing.assert_close(frame_to_plate(there, motion, 60, 40), points, rtol=0, atol=5e-3)
    still = torch.cat([motion[:, :4], torch.zeros(2, 50)], 1)
    for move in (plate_to_frame, frame_to_plate):
        assert torch.equal(move(points, still, 60, 40), move(points, motion[:, :4], 60, 40))
        assert torch.equal(move(points[:, 0, 0], motion, 60, 40), move(points, motion, 60, 40)[:, 0, 0])


def test_the_plate_learns_through_the_warp() -> None:
    """The gradient of a look-up through a warp against finite differences, by the plate and by the points."""
    plate = torch.rand(1, 20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    points = (torch.rand(1, 3, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 8 + 6).requires_grad_()
    motion = bent(2, 0.5)[:1].double()
    assert torch.autograd.gradcheck(lambda p, x: sample(p, frame_to_plate(x, motion, 20, 20)), (plate, points))


def test_margin_covers_every_frame_and_is_bounded() -> None:
    motions = torch.tensor([[0.0, 0, 0, 1], [7.0, 0, 0, 1], [0.0, -9.5, 0, 1]])
    assert margin_of(motions, 64, 64) == 10
    assert margin_of(motions[:1], 64, 64) == 0
    assert margin_of(torch.tensor([[900.0, 0, 0, 1]]), 64, 64) == 32


def test_a_plate_with_a_margin_is_the_same_plate() -> None:
    plate = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0))
    grid = pixel_centres(12, 12, "cpu")[None]
    torch.testing.assert_close(sample(plate, grid, 4)[0], plate[:, 4:16, 4:16], rtol=1e-4, atol=1e-5)


def test_masked_median_equals_numpy() -> None:
    rng = np.random.default_rng(0)
    values, mask = rng.random((7, 3, 30)).astype(np.float32), rng.random((7, 30)) > 0.4
    mask[:, 0] = False
    median = masked_median(torch.from_numpy(values), torch.from_numpy(mask))
    for p in range(30):
        expected = np.median(values[mask[:, p], :, p], axis=0) if mask[:, p].any() else np.zeros(3)
        np.testing.assert_allclose(median[:, p], expected, atol=1e-6)


def test_push_pull_keeps_what_is_known_and_stays_within_it() -> None:
    rng = torch.Generator().manual_seed(0)
    values = torch.rand(2, 33, 21, generator=rng)
    weights = (torch.rand(1, 33, 21, generator=rng) > 0.8).float()
    filled = push_pull(values, weights)
    torch.testing.assert_close(filled * weights, values * weights)
    assert filled.min() >= (values * weights + (1 - weights)).min() - 1e-5
    assert filled.max() <= (values * weights).max() + 1e-5
    constant = push_pull(torch.full((1, 33, 21), 0.7), weights)
    torch.testing.assert_close(constant, torch.full((1, 33, 21), 0.7))


def test_plate_of_the_toy_person(toy_clip: Clip) -> None:
    indices = toy_clip.split("train")
    motion = torch.from_numpy(toy_clip.load_torso_motion()[indices])
    margin = margin_of(motion, 64, 64)
    plate = build_plate(zip(toy_clip.read_frames(indices), toy_clip.read_labels(indices)), motion, margin)
    assert plate.shape == (4, 64 + 2 * margin, 64 + 2 * margin) and plate.isfinite().all()

    frames, labels = toy_clip.read_frames(np.arange(20, 24)), toy_clip.read_labels(np.arange(20, 24))
    warped = warp_plate(plate, torch.from_numpy(toy_clip.load_torso_motion()[20:24]), 64, 64, margin)
    alpha = torch.sigmoid(warped[:, 3]).numpy()
    assert (alpha[(labels == 1) | (labels == 2)] > 0.5).mean() > 0.99
    assert (alpha[labels == 0] < 0.5).mean() > 0.99
    error = abs(warped[:, :3].permute(0, 2, 3, 1).numpy() - frames / 255)[labels == 1]
    assert error.mean() < 0.05

    chin = margin + 36  # a few rows above the visible neck, always behind the head
    assert torch.sigmoid(plate[3, chin, margin + 32]) > 0.9, "the neck goes on under the chin"
    skin = plate[:3, margin + 44, margin + 32]
    assert (plate[:3, chin, margin + 32] - skin).abs().max() < 0.1


COLLAR = np.s_[40:90, 50:62]


def collar_on_jacket(shift: int) -> np.ndarray:
    """uint8 (96, 128, 3): a striped jacket, a white collar that is `shift` pixels away from its place."""
    x = np.arange(128.0)
    picture = np.repeat((60 + 20 * np.sin(x / 2))[None, :, None], 96, 0).repeat(3, 2)
    picture[COLLAR[0], 50 + shift : 62 + shift] = 235
    return picture.astype(np.uint8)


@pytest.mark.parametrize("shifts", [[0] * 10 + [9] * 10, [0] * 8 + [9] * 6 + [-9] * 6, [0] * 8 + list(range(3, 15))])
def test_a_collar_that_moves_on_the_jacket_is_on_the_plate_once(shifts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    order = np.random.default_rng(0).permutation(shifts)
    frames = [(collar_on_jacket(shift), np.ones((96, 128), np.uint8)) for shift in order]
    motion = torch.tensor([[0.0, 0, 0, 1]]).expand(len(frames), -1)
    away = []
    for kind in ("layers", "median"):
        if kind == "median":
            monkeypatch.setattr(plate_module, "agreeing", lambda pictures, labels: torch.ones(len(pictures), 96, 128) > 0)
        plate = build_plate(iter(frames), motion, 0)[:3].permute(1, 2, 0).numpy() * 255
        away.append(min(np.abs(plate - collar_on_jacket(shift)).mean(-1)[38:92].mean() for shift in range(-9, 15)))
    assert away[0] < 0.5 and away[1] > away[0] + 1.5


def test_frames_that_agree_all_over_take_part_all_over() -> None:
    rng = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 255, (1, 3, 40, 50), generator=rng, dtype=torch.uint8).expand(9, -1, -1, -1)
    labels = torch.zeros(9, 4, 40, 50)
    labels[:, 0] = 1
    assert agreeing(pictures, labels).all()


def test_labels_without_a_person_are_refused() -> None:
    frames = [(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8))]
    with pytest.raises(TalkheadError, match="no torso"):
        build_plate(frames, torch.tensor([[0.0, 0, 0, 1]]), 0)
