"""The networks of PORPOISE: slides, omics, and both fused.

Chen et al., Pan-cancer integrative histology-genomic analysis via multimodal deep learning (Cancer
Cell 2022), from the text of the paper; Ilse, Tomczak and Welling (ICML 2018) for gated attention,
Klambauer et al. (NeurIPS 2017) for self-normalizing networks. Two choices where the paper leaves
one: the exponential linear units are the scaled ones of Klambauer et al., because only those keep
mean 0 and variance 1 and only they have the saturation that alpha dropout sets units to; and the
skip around the first fused layer concatenates the two gated vectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Kind = Literal["amil", "snn", "mmf"]
HIDDEN, GATE, SNN_WIDTH = 512, 256, 256
FUSED, SCALED = 256, 32
DROPOUT = 0.25
SNN_BLOCKS, SNN_BLOCKS_FUSED = 4, 2


@dataclass(frozen=True)
class Batch:
    """Some patients' inputs, bags packed one after the other.

    Attributes
    ----------
    tiles
        Embeddings of all patients, shape [n, D]; n = 0 where no patient has slides.
    offsets
        Row at which each patient's bag starts, and n; length patients + 1. An empty bag stands
        for a patient without slides.
    omics
        Standardized features, float32, shape [patients, G].
    has_omics
        Whether each patient has omics, bool, shape [patients].
    """

    tiles: Tensor
    offsets: tuple[int, ...]
    omics: Tensor
    has_omics: Tensor


class SlideBranch(nn.Module):
    """Attention-weighted mean of a patient's tiles in a learned space of 512 dimensions."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.entry = nn.Linear(inputs, HIDDEN)
        self.dropout = ByteDropout()
        self.gate_tanh = nn.Linear(HIDDEN, GATE)
        self.gate_sigmoid = nn.Linear(HIDDEN, GATE)
        self.weight = nn.Linear(GATE, 1, bias=False)  # a softmax takes no notice of a bias

    def forward(self, tiles: Tensor, offsets: Sequence[int]) -> Tensor:
        """Shape [patients, 512]; zeros for an empty bag."""
        if not len(tiles):  # nobody here has slides, so nobody knew the width
            tiles = tiles.new_empty((0, self.entry.in_features))
        hidden = self._hidden(tiles)
        logits = self._logits(hidden)
        # A product a bag, not a scatter: it reads `hidden` once and stores no weighted copy of it.
        pooled = [
            torch.softmax(logits[start:end], 0) @ hidden[start:end]
            for start, end in pairwise(offsets)
        ]
        return torch.stack(pooled)

    def attention(self, tiles: Tensor) -> Tensor:
        """Weight of each tile of one bag; they sum to 1; shape [n]."""
        return torch.softmax(self._logits(self._hidden(tiles)).float(), 0)

    def _hidden(self, tiles: Tensor) -> Tensor:
        return self.dropout(torch.relu(self.entry(tiles)))

    def _logits(self, hidden: Tensor) -> Tensor:
        gated = torch.tanh(self.gate_tanh(hidden)) * torch.sigmoid(self.gate_sigmoid(hidden))
        return self.weight(gated)[:, 0]


class ByteDropout(nn.Module):
    """Dropout of a quarter of the units, decided by one random byte a unit.

    torch's own draws a float a unit on the CPU, which takes a seventh of an epoch.
    """

    KEPT_BYTES = round(256 * (1 - DROPOUT))

    def forward(self, values: Tensor) -> Tensor:
        """`values` with a quarter set to zero and the rest raised, in training; else unchanged."""
        if not self.training or not values.numel():
            return values
        words = torch.empty(-(-values.numel() // 8), dtype=torch.int64, device=values.device)
        drawn = words.random_(-(2**63), None).view(torch.uint8)[: values.numel()]
        kept = (drawn < self.KEPT_BYTES).view(values.shape)
        return values * kept.to(values.dtype).mul_(256 / self.KEPT_BYTES)


class SelfNormalizing(nn.Sequential):
    """Blocks of a linear layer of 256, scaled exponential linear units and alpha dropout."""

    def __init__(self, inputs: int, blocks: int) -> None:
        layers: list[nn.Module] = []
        for width in [inputs, *[SNN_WIDTH] * (blocks - 1)]:
            linear = nn.Linear(width, SNN_WIDTH)
            nn.init.normal_(linear.weight, std=1 / sqrt(width))
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.SELU(), nn.AlphaDropout(DROPOUT)]
        super().__init__(*layers)


class GatedUnit(nn.Module):
    """A modality scaled to 32 dimensions, each let through as far as both modalities say."""

    def __init__(self, inputs: int, both: int) -> None:
        super().__init__()
        self.value = nn.Linear(inputs, SCALED)
        self.gate = nn.Linear(both, SCALED)
        self.mix = nn.Sequential(nn.Linear(SCALED, SCALED), nn.ReLU(), nn.Dropout(DROPOUT))

    def forward(self, own: Tensor, both: Tensor) -> Tensor:
        """Shape [patients, 32]."""
        return self.mix(torch.relu(self.value(own)) * torch.sigmoid(self.gate(both)))


class Fusion(nn.Module):
    """Outer product of two gated modalities, each with a one appended, and two layers of 256.

    A missing modality is a vector of zeros, both where gates read it and as a factor of the
    product, where the appended one then leaves the other modality's own terms.
    """

    def __init__(self, slide_inputs: int, omics_inputs: int) -> None:
        super().__init__()
        both = slide_inputs + omics_inputs
        self.slide = GatedUnit(slide_inputs, both)
        self.omics = GatedUnit(omics_inputs, both)
        self.dropout = nn.Dropout(DROPOUT)
        self.first = nn.Linear((SCALED + 1) ** 2, FUSED)
        self.second = nn.Linear(FUSED + 2 * SCALED, FUSED)

    def forward(self, slide: Tensor, omics: Tensor, has_slide: Tensor, has_omics: Tensor) -> Tensor:
        """Shape [patients, 256]; the masks are bool, shape [patients]."""
        slide, omics = slide * has_slide[:, None], omics * has_omics[:, None]
        both = torch.cat([slide, omics], dim=1)
        slide = self.slide(slide, both) * has_slide[:, None]
        omics = self.omics(omics, both) * has_omics[:, None]
        product = torch.einsum("pi,pj->pij", _append_one(slide), _append_one(omics)).flatten(1)
        fused = functional.dropout(
            torch.relu(self.first(self.dropout(product))), DROPOUT, self.training
        )
        skipped = torch.cat([fused, slide, omics], dim=1)
        return functional.dropout(torch.relu(self.second(skipped)), DROPOUT, self.training)


class Porpoise(nn.Module):
    """One of the three networks with its head of hazards or classes.

    Parameters
    ----------
    kind
        ``amil`` reads slides, ``snn`` omics, ``mmf`` both.
    embedding, genes
        Width of a tile's embedding and number of omics features; 0 for what is not read.
    outputs
        Discrete hazards or classes.
    """

    def __init__(self, kind: Kind, embedding: int, genes: int, outputs: int) -> None:
        super().__init__()
        self.kind = kind
        if kind != "snn":
            self.slide = SlideBranch(embedding)
        if kind != "amil":
            self.omics = SelfNormalizing(genes, SNN_BLOCKS if kind == "snn" else SNN_BLOCKS_FUSED)
        if kind == "mmf":
            self.fusion = Fusion(HIDDEN, SNN_WIDTH)
        width = {"amil": HIDDEN, "snn": SNN_WIDTH, "mmf": FUSED}[kind]
        self.head = nn.Linear(width, outputs)

    def forward(self, batch: Batch) -> Tensor:
        """Logits, float32, shape [patients, outputs]."""
        if self.kind == "amil":
            return self.head(self.slide(batch.tiles, batch.offsets)).float()
        if self.kind == "snn":
            return self.head(self.omics(batch.omics)).float()
        slide = self.slide(batch.tiles, batch.offsets)
        filled = [end > start for start, end in pairwise(batch.offsets)]
        has_slide = torch.tensor(filled, device=slide.device)
        fused = self.fusion(slide, self.omics(batch.omics), has_slide, batch.has_omics)
        return self.head(fused).float()


def _append_one(values: Tensor) -> Tensor:
    return torch.cat([values, torch.ones_like(values[:, :1])], dim=1)
