import torch

from torso_styleunet.losses import alpha_loss, laplacian_l1, regions, temporal_l1, weighted_mean


def test_regions_lie_where_the_labels_meet() -> None:
    labels = torch.zeros(1, 16, 16, dtype=torch.uint8)
    labels[:, 10:], labels[:, 2:8, 4:12], labels[:, 8:10, 6:10] = 1, 3, 2
    where = regions(labels, 1)
    assert where.person[0, 0, 12, 0] == 1 and where.person[0, 0, 9, 7] == 1 and where.head[0, 0, 3, 5] == 1
    assert where.seam[0, 0, 7, 7] == 1 and where.seam[0, 0, 14, 7] == 0
    assert where.contour[0, 0, 10, 1] == 1 and where.contour[0, 0, 15, 1] == 0


def test_laplacian_is_zero_for_equal_images_ignores_a_constant_and_sees_edges() -> None:
    ones = torch.ones(1, 1, 32, 32)
    assert laplacian_l1(torch.zeros(1, 3, 32, 32), ones) == 0
    assert laplacian_l1(torch.full((1, 3, 32, 32), 0.3), ones) < 1e-6
    edge = torch.zeros(1, 3, 32, 32)
    edge[..., 16:] = 0.3
    assert laplacian_l1(edge, ones) > 1e-3


def test_weighted_mean_and_temporal_loss() -> None:
    values, weights = torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[1.0, 3.0]]]])
    assert weighted_mean(values, weights) == 2.5
    error = torch.rand(2, 3, 8, 8)
    assert temporal_l1(torch.cat([error, error]), torch.ones(4, 1, 8, 8)) == 0
    assert abs(temporal_l1(torch.cat([error, error + 0.1]), torch.ones(4, 1, 8, 8)) - 0.1) < 1e-6


def test_alpha_loss_ignores_what_the_head_hides() -> None:
    labels = torch.zeros(1, 16, 16, dtype=torch.uint8)
    labels[:, 8:], labels[:, :4] = 1, 3
    where = regions(labels, 1)
    right = torch.where(where.person > 0, 8.0, -8.0)
    assert alpha_loss(right, where) < 1e-3
    hidden = right.clone()
    hidden[:, :, :4] = 8.0
    assert alpha_loss(hidden, where) == alpha_loss(right, where)
    assert alpha_loss(-right, where) > 5
