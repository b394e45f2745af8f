import numpy as np
import pytest
import torch

from conceptcam.metrics.novelty import feature_distance, fit_feature_statistics


def cloud(rows=400, channels=12, seed=0):
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(3, channels, generator=torch.Generator().manual_seed(9))
    noise = 0.1 * torch.randn(rows, channels, generator=random)
    return torch.randn(rows, 3, generator=random) @ mixing + noise + 5


def test_distance_equals_a_slow_one_in_numpy():
    train, others = cloud().double().numpy(), cloud(20, seed=1).double().numpy() * 1.1
    found = feature_distance(torch.from_numpy(others), fit_feature_statistics(torch.from_numpy(train), rank=3))
    mean, std = train.mean(0), train.std(0, ddof=1)
    standard = (train - mean) / std
    values, vectors = np.linalg.eigh(standard.T @ standard / len(train))
    main, spread = vectors[:, -3:], values[-3:]
    rest = np.mean([np.sum((row - main @ (main.T @ row)) ** 2) for row in standard])
    for row, distance in zip((others - mean) / std, found, strict=True):
        along = main.T @ row
        away = np.sum((row - main @ along) ** 2)
        assert float(distance) == pytest.approx(np.sqrt(np.mean(along**2 / spread) + away / rest))


def test_mean_square_distance_of_training_images_is_two():
    train = cloud()
    distances = feature_distance(train, fit_feature_statistics(train))
    assert float(distances.square().mean()) == pytest.approx(2, rel=0.01)


def test_a_step_off_the_cloud_counts_more_than_one_along_it():
    train = cloud()
    statistics = fit_feature_statistics(train, rank=3)
    along = train.mean(dim=0) + statistics.directions[-1] * statistics.std
    random = torch.randn(12, generator=torch.Generator().manual_seed(4)).double()
    off = random - statistics.directions.T @ (statistics.directions @ random)
    away = train.mean(dim=0) + off / off.norm() * statistics.std
    near, far = feature_distance(torch.stack([along, away]), statistics)
    assert far > 5 * near


def test_distances_do_not_depend_on_scale_or_shift_of_channels():
    train, others = cloud().double(), cloud(30, seed=2).double()
    scale, shift = torch.rand(12).double() + 0.5, torch.randn(12).double()
    plain = feature_distance(others, fit_feature_statistics(train))
    moved = feature_distance(others * scale + shift, fit_feature_statistics(train * scale + shift))
    torch.testing.assert_close(plain, moved)


def test_few_images_and_dead_channels_still_have_a_distance():
    train = cloud(8)
    train[:, 2] = 1.0
    statistics = fit_feature_statistics(train)
    assert len(statistics.directions) == 2
    assert feature_distance(train, statistics).isfinite().all()
    with pytest.raises(ValueError, match="need at least 8 rows"):
        fit_feature_statistics(train[:7])
