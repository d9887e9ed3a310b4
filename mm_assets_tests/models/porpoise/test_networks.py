"""The networks: dimensions, packing, symmetry, moments, gradients."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mm_assets.models.porpoise.hazards import hazard_nll
from mm_assets.models.porpoise.inputs import Inputs
from mm_assets.models.porpoise.networks import (
    Batch,
    ByteDropout,
    Kind,
    Porpoise,
    SelfNormalizing,
)
from mm_assets_tests.models.porpoise.made_up import (
    GENES,
    WIDTH,
    make_cohort,
    make_inputs,
    patient_ids,
)

KINDS: tuple[Kind, ...] = ("amil", "snn", "mmf")
GENES_PAPER = 2000
# Weights and biases layer by layer, from the dimensions in the paper.
SLIDE = (1024 * 512 + 512) + 2 * (512 * 256 + 256) + 256
BLOCK = 256 * 256 + 256
ENTRY = GENES_PAPER * 256 + 256
UNITS = (512 * 32 + 32) + (256 * 32 + 32) + 2 * (768 * 32 + 32) + 2 * (32 * 32 + 32)
LAYERS = (33 * 33 * 256 + 256) + ((256 + 32 + 32) * 256 + 256)
PARAMETERS = {
    "amil": SLIDE + 512 * 4 + 4,
    "snn": ENTRY + 3 * BLOCK + 256 * 4 + 4,
    "mmf": SLIDE + ENTRY + BLOCK + UNITS + LAYERS + 256 * 4 + 4,
}
CPU = torch.device("cpu")


def network(kind: Kind, seed: int = 0) -> Porpoise:
    """A small network as it is drawn."""
    torch.manual_seed(seed)
    return Porpoise(kind, WIDTH, GENES, 4)


def batch_of(patients: int, seed: int = 0) -> Batch:
    """Packed noise."""
    return make_inputs(make_cohort(patients, seed)).pack(patient_ids(patients), CPU)


@pytest.mark.parametrize("kind", KINDS)
def test_dimensions_are_those_of_the_paper(kind: Kind) -> None:
    whole = Porpoise(kind, 1024, GENES_PAPER, 4).eval()
    assert sum(weights.numel() for weights in whole.parameters()) == PARAMETERS[kind]
    omics = torch.randn(2, GENES_PAPER)
    batch = Batch(torch.randn(7, 1024), (0, 3, 7), omics, torch.tensor([True, True]))
    assert whole(batch).shape == (2, 4)
    if kind != "snn":
        assert whole.slide(batch.tiles, batch.offsets).shape == (2, 512)
        assert whole.slide.attention(batch.tiles).shape == (7,)
    if kind != "amil":
        assert whole.omics(omics).shape == (2, 256)
        assert len([layer for layer in whole.omics if isinstance(layer, nn.Linear)]) == (
            4 if kind == "snn" else 2
        )


@pytest.mark.parametrize("kind", KINDS)
def test_packed_equals_one_by_one(kind: Kind) -> None:
    inputs, names = make_inputs(make_cohort(9)), patient_ids(9)
    model = network(kind).eval()
    packed = model(inputs.pack(names, CPU))
    alone = torch.cat([model(inputs.pack([name], CPU)) for name in names])
    torch.testing.assert_close(packed, alone, atol=1e-6, rtol=1e-5)
    groups = [group for group, _ in inputs.packs(names, 40, CPU)]
    assert [name for group in groups for name in group] == names
    assert all(sum(map(inputs.tiles, group)) <= 40 for group in groups if len(group) > 1)
    assert len(groups) > 2
    # The gradient of the sum is the sum of gradients.
    gradients = []
    for parts in ([names], [[name] for name in names]):
        model.zero_grad()
        for part in parts:
            model(inputs.pack(part, CPU)).square().sum().backward()
        gradients.append([weights.grad.clone() for weights in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4))
def test_the_order_of_tiles_does_not_matter(seed: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(seed)
    tiles = torch.tensor(rng.normal(size=(sum(sizes), WIDTH)), dtype=torch.float32)
    ends = np.cumsum([0, *sizes])
    order = np.concatenate([s + rng.permutation(e - s) for s, e in pairwise(ends)])
    omics = torch.zeros(len(sizes), GENES)
    has = torch.ones(len(sizes), dtype=torch.bool)
    for kind in ("amil", "mmf"):
        model = network(kind).eval()
        batch = Batch(tiles, tuple(ends.tolist()), omics, has)
        shuffled = replace(batch, tiles=tiles[order])
        torch.testing.assert_close(model(batch), model(shuffled), atol=1e-6, rtol=1e-5)


def test_attention_is_the_pooling_and_sums_to_one() -> None:
    model = network("amil").eval()
    tiles = torch.randn(31, WIDTH)
    weights = model.slide.attention(tiles)
    assert weights.sum().item() == pytest.approx(1, abs=1e-6)
    hidden = torch.relu(model.slide.entry(tiles))
    pooled = model.slide(tiles, (0, 31))[0]
    torch.testing.assert_close(weights @ hidden, pooled, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_self_normalizing_activations_keep_mean_0_and_variance_1(training: bool) -> None:
    torch.manual_seed(0)
    values = torch.randn(4096, 1000)
    layers = SelfNormalizing(1000, 8).train(training)
    for layer in layers:
        values = layer(values)
        if isinstance(layer, nn.AlphaDropout):
            assert values.mean().item() == pytest.approx(0, abs=0.06)
            assert values.var().item() == pytest.approx(1, abs=0.1)


def test_dropout_by_bytes_drops_a_quarter_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    dropout = ByteDropout()
    values = torch.ones(1000, 1001, requires_grad=True)
    dropped = dropout(values)
    zero = (dropped == 0).float()
    # Standard error of a share of a million: .0004.
    assert zero.mean().item() == pytest.approx(0.25, abs=0.003)
    assert dropped.mean().item() == pytest.approx(1, abs=0.004)
    assert zero.mean(0).std().item() == pytest.approx((0.25 * 0.75 / 1000) ** 0.5, rel=0.1)
    dropped.sum().backward()
    torch.testing.assert_close(values.grad, dropped.detach())
    assert dropout.eval()(values) is values


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_reaches_every_parameter(kind: Kind) -> None:
    model = network(kind).train()
    model(batch_of(64)).square().sum().backward()
    for name, weights in model.named_parameters():
        assert weights.grad is not None, name
        assert weights.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_of_half_precision_tiles_agrees_with_float32(kind: Kind) -> None:
    """As on a GPU: the same arithmetic under autocast, of tiles as they travel there."""
    model, batch = network(kind).eval(), batch_of(16)
    exact = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(replace(batch, tiles=batch.tiles.half()))
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() < 0.05 * exact.std()
    loss = hazard_nll(rounded, torch.arange(16) % 4, torch.arange(16) % 2)
    loss.sum().backward()
    for name, weights in model.named_parameters():
        assert weights.grad.dtype == torch.float32, name
        assert torch.isfinite(weights.grad).all(), name


def test_a_batch_without_any_slide_is_read_by_its_omics() -> None:
    model, cohort = network("mmf").eval(), make_cohort(4)
    few = Inputs({"P000": cohort.bags["P000"]}, make_inputs(cohort).omics)
    together, alone = (few.pack(patient_ids(4)[start:], CPU) for start in (0, 1))
    assert alone.tiles.shape == (0, 0)
    torch.testing.assert_close(model(alone), model(together)[1:], atol=1e-6, rtol=1e-5)
    model.train()(alone).sum().backward()
    assert model.slide.entry.weight.grad.abs().sum() == 0


def test_a_missing_modality_has_no_say() -> None:
    model = network("mmf").eval()
    batch = batch_of(3)
    without = replace(batch, has_omics=torch.tensor([False, True, True]))
    other = replace(without, omics=without.omics + torch.tensor([[9.0], [0.0], [0.0]]))
    torch.testing.assert_close(model(without), model(other))
    assert not torch.allclose(model(batch)[0], model(without)[0])
    torch.testing.assert_close(model(batch)[1:], model(without)[1:])
    # The first patient's bag emptied: what the omics then say depends on no tile.
    start = batch.offsets[1]
    cut = tuple(max(0, offset - start) for offset in batch.offsets)
    emptied = replace(batch, tiles=batch.tiles[start:], offsets=cut)
    scaled = replace(emptied, tiles=emptied.tiles * 3)
    torch.testing.assert_close(model(emptied)[0], model(scaled)[0])
    torch.testing.assert_close(model(emptied)[1:], model(batch)[1:], atol=1e-6, rtol=1e-5)
