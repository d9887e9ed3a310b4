"""Pre-training on grids in memory: it learns, resumes, shares work and notices collapse."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from mm_assets.encoders.vit import RegionTransformer
from mm_assets.models.checkpoint import Checkpoint
from mm_assets.ssl.crops import RegionCrops
from mm_assets.ssl.dino import Loss
from mm_assets.ssl.processes import run_together
from mm_assets.ssl.stream import Stream
from mm_assets.ssl.training import (
    LEAST_INFORMATION,
    LEAST_SPREAD,
    Epoch,
    Pretrained,
    Pretraining,
    initialized,
)
from mm_assets_tests.ssl.pictures import (
    SMALL,
    Memory,
    corners,
    grids,
    small_network,
    small_training,
)

DROPPED = RegionCrops(3, 2, 2)


class Killed(Exception):
    pass


def test_a_killed_training_goes_on_with_the_same_curve(tmp_path: Path) -> None:
    crops = DROPPED
    whole = small_training(crops=crops).run()
    checkpoint = Checkpoint(tmp_path / "dino.pt", "key")

    def killed(epoch: Epoch) -> None:
        if epoch.epoch == 1:
            raise Killed

    with pytest.raises(Killed):
        small_training(crops=crops, checkpoint=checkpoint, on_epoch=killed).run()
    told: list[Epoch] = []
    again = small_training(crops=crops, checkpoint=checkpoint, on_epoch=told.append).run()
    assert list(again.curve) == list(whole.curve) == told
    assert all((again.weights[name] == tensor).all() for name, tensor in whole.weights.items())
    other = small_training(crops=crops, checkpoint=Checkpoint(tmp_path / "dino.pt", "another"))
    assert other.run().curve == whole.curve


def test_what_was_lost_before_the_kill_stays_lost(tmp_path: Path) -> None:
    """A slide that is tried anew would change what an epoch shows."""

    def training(*rest) -> Pretraining:
        sources = [*grids(3), Memory("broken", grids(1)[0].pictures, broken=True)]
        stream = Stream(sources, each=8, batch=8, pool=8, seed=3)
        return Pretraining(small_network(), DROPPED, stream, SMALL, *rest)

    def killed(epoch: Epoch) -> None:
        raise Killed

    whole, checkpoint = training().run(), Checkpoint(tmp_path / "dino.pt", "key")
    with pytest.raises(Killed):
        training(checkpoint, killed).run()
    again = training(checkpoint).run()
    assert again.curve == whole.curve
    assert again.lost == whole.lost == {"broken": "broken is broken"}


def test_the_last_layer_waits_an_epoch_and_the_teacher_follows() -> None:
    training = small_training(parameters=replace(SMALL, epochs=1))
    before = training._student.head.prototypes.clone()
    first = small_network().state_dict()
    weights = training.run().weights
    assert (training._student.head.prototypes == before).all()
    student = training._student.backbone.state_dict()
    moved = {name: (weights[name] - first[name]).norm() for name in first}
    assert moved["blocks.0.attn.qkv.weight"] > 0
    assert (
        moved["blocks.0.attn.qkv.weight"]
        < (student["blocks.0.attn.qkv.weight"] - first["blocks.0.attn.qkv.weight"]).norm()
    )


def test_parts_of_a_step_add_up() -> None:
    whole = small_training().run().weights
    parts = small_training(parameters=replace(SMALL, accumulate=4)).run().weights
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, atol=1e-4, rtol=1e-3)


def test_half_precision_learns_what_full_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, with the CPU's products in bfloat16."""
    full = small_training(crops=DROPPED).run()
    monkeypatch.setattr(Pretraining, "_mixed", lambda _: torch.autocast("cpu", torch.bfloat16))
    training, products = small_training(crops=DROPPED), set()
    layer = training._student.backbone.blocks[0].attn.qkv
    layer.register_forward_hook(lambda *call: products.add(call[-1].dtype))
    half = training.run()
    assert products == {torch.bfloat16}
    assert {tensor.dtype for tensor in half.weights.values()} == {torch.float32}
    losses = [epoch.loss for epoch in full.curve]
    assert [epoch.loss for epoch in half.curve] == pytest.approx(losses, rel=0.05)


def killed_and_resumed(checkpoint: Path, rank: int, world: int) -> Pretrained:
    def killed(epoch: Epoch) -> None:
        if world > 1:
            torch.distributed.barrier()
        raise Killed

    kept = Checkpoint(checkpoint, "key")
    with pytest.raises(Killed):
        both_halves(rank, world, kept, killed).run()
    return both_halves(rank, world, kept).run()


def both_halves(
    rank: int, world: int, checkpoint: Checkpoint | None = None, on_epoch=None
) -> Pretraining:
    """A step sees the same pictures in one process or two: every slide has one picture.

    Two processes also compute it in two parts.
    """
    rng = np.random.default_rng(0)
    sources = [
        Memory(f"s{at}", rng.normal(size=(1, 4, 4, 6)).astype(np.float32)) for at in range(8)
    ]
    stream = Stream(sources, each=1, batch=8, pool=8, seed=0)
    parameters = replace(SMALL, epochs=2, accumulate=world)
    return Pretraining(
        small_network(), corners, stream, parameters, checkpoint, on_epoch, rank, world
    )


def test_two_processes_train_as_one_though_killed_in_between(tmp_path: Path) -> None:
    alone = both_halves(0, 1).run()
    together = run_together(partial(killed_and_resumed, tmp_path / "dino.pt"), 2)
    for name, tensor in alone.weights.items():
        torch.testing.assert_close(together.weights[name], tensor, atol=1e-4, rtol=1e-3)
    losses = [epoch.loss for epoch in alone.curve]
    assert [epoch.loss for epoch in together.curve] == pytest.approx(losses, rel=1e-3)


def failing(rank: int, world: int) -> None:
    if rank:
        raise RuntimeError("this device is broken")
    torch.distributed.barrier()


def test_a_process_that_fails_ends_the_training_with_its_reason() -> None:
    with pytest.raises(Exception, match="this device is broken"):
        run_together(failing, 2)


def other_stain(pictures: Tensor, generator: Generator) -> list[Tensor]:
    """Crops that differ in four of the six values, by as much as pictures do."""
    channels_first = pictures.permute(0, 3, 1, 2)
    made = []
    for _ in range(4):
        shift = torch.zeros(len(pictures), 6, 1, 1)
        shift[:, 2:] = 3 * torch.randn(len(pictures), 4, 1, 1, generator=generator)
        made.append(channels_first + shift)
    return made


def neighbours_alike(network: RegionTransformer, pictures: np.ndarray, kind: np.ndarray) -> float:
    """How often a picture's nearest neighbour is of its kind."""
    with torch.no_grad():
        features = network(torch.from_numpy(pictures).permute(0, 3, 1, 2)).numpy()
    features = (features - features.mean(0)) / features.std(0)
    distance = ((features[:, None] - features[None]) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    return float((kind[distance.argmin(1)] == kind).mean())


def test_what_crops_change_is_forgotten_and_the_rest_is_learned() -> None:
    rng = np.random.default_rng(0)
    kind = np.arange(128) % 4
    means = np.zeros((128, 6))
    means[:, :2] = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])[kind]
    means[:, 2:] = 3 * rng.normal(size=(128, 4))
    noise = 0.3 * rng.normal(size=(128, 4, 4, 6))
    pictures = (means[:, None, None] + noise).astype(np.float32)
    sources = [Memory(f"s{at}", pictures[at * 32 : at * 32 + 32]) for at in range(4)]
    stream = Stream(sources, each=32, batch=32, pool=64, seed=0)
    network = initialized(lambda: RegionTransformer(6, 24, 2), 1)
    before = neighbours_alike(network, pictures, kind)
    parameters = replace(
        SMALL, epochs=80, prototypes=64, rate=0.015, momentum=0.99, temperature=0.03
    )
    made = Pretraining(network, other_stain, stream, parameters).run()
    trained = RegionTransformer.like(made.weights)
    trained.load_state_dict(made.weights)
    assert before < 0.5
    assert neighbours_alike(trained, pictures, kind) > 0.7
    last = made.curve[-1]
    assert not last.collapsed
    assert last.information > 10 * LEAST_INFORMATION


def test_one_prototype_everywhere_is_collapse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without centring, though features still differ."""
    monkeypatch.setattr(Loss, "follow", lambda loss, outputs: None)
    last = small_training(crops=DROPPED, parameters=replace(SMALL, epochs=15)).run().curve[-1]
    assert last.collapsed
    assert last.spread > LEAST_SPREAD
    assert last.entropy < 0.01


def test_all_prototypes_alike_is_collapse() -> None:
    """Without sharpening."""
    warm = replace(SMALL, epochs=15, temperature=1.0)
    last = small_training(crops=DROPPED, parameters=warm).run().curve[-1]
    assert last.collapsed
    assert last.entropy == pytest.approx(math.log(SMALL.prototypes), rel=1e-3)


def test_features_that_are_all_alike_are_collapse() -> None:
    healthy = Epoch(0, loss=1.0, entropy=1.0, spread=0.5, information=1.0)
    assert not healthy.collapsed
    assert replace(healthy, spread=LEAST_SPREAD / 2).collapsed


def test_a_loss_that_is_no_number_stops_the_training() -> None:
    with pytest.raises(FloatingPointError, match="lower the rate"):
        small_training(parameters=replace(SMALL, rate=1e30)).run()
