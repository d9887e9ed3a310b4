import numpy as np
import pytest
import torch
from torch import Generator

from mm_assets.ssl import crops
from mm_assets.ssl.crops import RegionCrops, TileCrops


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def test_tile_crops_have_their_sizes_and_are_normalized() -> None:
    tiles = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8))
    made = TileCrops(global_px=48, local_px=16, local=5)(tiles, seeded())
    assert [crop.shape for crop in made] == [(3, 3, 48, 48)] * 2 + [(3, 3, 16, 16)] * 5
    assert all(crop.abs().max() <= 1 for crop in made)
    again = TileCrops(global_px=48, local_px=16, local=5)(tiles, seeded())
    assert all((one == other).all() for one, other in zip(made, again, strict=True))


def test_a_crop_lies_in_its_picture_and_covers_its_share() -> None:
    """Of a picture whose channels are its own coordinates, from 0 to 1."""
    ramp = (torch.arange(64) + 0.5) / 64
    picture = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), torch.zeros(64, 64)])
    count = 400
    made = crops._cropped(picture.expand(count, 3, 64, 64), (1.6, 4.0), 32, seeded())
    width = (made[:, 0, 16, -1] - made[:, 0, 16, 0]).abs() * 32 / 31
    height = (made[:, 1, -1, 16] - made[:, 1, 0, 16]) * 32 / 31
    assert (made[:, :2].amin(), made[:, :2].amax()) == pytest.approx((0, 1), abs=0.02)
    share = width * height
    assert 0.3 < share.min() < 0.45
    assert share.max() > 0.9
    assert share.mean() == pytest.approx(0.69, abs=0.03)
    flipped = (made[:, 0, 16, -1] < made[:, 0, 16, 0]).float().mean()
    assert flipped == pytest.approx(0.5, abs=0.08)


def test_hue_turns_colours_and_leaves_grey_alone() -> None:
    mix = crops._mixes(torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.0, 0.5, 0.0]))
    torch.testing.assert_close(mix[0], torch.eye(3), atol=1e-5, rtol=0)
    grey = torch.full((3,), 0.4)
    torch.testing.assert_close(mix @ grey, grey.expand(3, 3), atol=2e-3, rtol=0)
    red = mix[1] @ torch.tensor([1.0, 0.0, 0.0])
    assert red.argmin() == 0
    without = mix[2] @ torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close(without, torch.full((3,), 0.299), atol=2e-3, rtol=0)


def test_blur_smooths_the_chosen_and_keeps_their_mean() -> None:
    noise = torch.rand(40, 3, 32, 32, generator=seeded(1))
    made = crops._blurred(noise, 0.5, seeded())
    same = (made == noise).flatten(1).all(1)
    assert 0.3 < same.float().mean() < 0.7
    assert (made[~same].std((2, 3)) <= noise[~same].std((2, 3)) + 1e-6).all()
    torch.testing.assert_close(made.mean((2, 3)), noise.mean((2, 3)), atol=0.03, rtol=0)


def test_region_crops_are_windows_of_the_grid() -> None:
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    grid = torch.stack([rows + 1, columns + 1], -1).expand(50, 8, 8, 2)
    made = RegionCrops(global_tiles=6, local_tiles=3, local=2, dropout=0.0)(grid, seeded())
    assert [crop.shape for crop in made] == [(50, 2, 6, 6)] * 2 + [(50, 2, 3, 3)] * 2
    step = made[2][:, 0].diff(dim=1)
    assert set(step.unique().tolist()) == {-1.0, 1.0}
    assert (step[:, :1, :1] == step).all()
    assert {int(row) for row in made[2][:, 0].unique()} == set(range(1, 9))
    dropped = RegionCrops(global_tiles=20, local_tiles=3, dropout=0.25)(grid, seeded())[0]
    assert dropped.shape == (50, 2, 8, 8)
    assert (dropped == 0).float().mean() == pytest.approx(0.25, abs=0.02)
