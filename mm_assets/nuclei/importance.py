"""Which nuclei a network's score rests on: integrated gradients, and attention beside them.

Sundararajan, Taly and Yan, Axiomatic Attribution for Deep Networks (ICML 2017), through captum.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mm_assets.nuclei.features import Floats
from mm_assets.nuclei.network import NucleusNetwork


def integrated_gradients(
    network: NucleusNetwork,
    features: torch.Tensor,
    edges: torch.Tensor,
    contrast: torch.Tensor,
    reference: torch.Tensor,
    steps: int,
) -> Floats:
    """What each nucleus of one graph adds to a score.

    The path starts at the same graph with every nucleus like the reference. (From the average
    nucleus, a slide full of tumour would have no evidence in it: its average nucleus is tumour.)
    Memory is that of one pass through the network, whatever the number of steps.

    Parameters
    ----------
    features
        float32, shape [n, F], n > 0.
    edges
        int64, shape [2, e], both directions of every edge.
    contrast
        Weights of the network's outputs in the score, shape [outputs].
    reference
        Features of a nucleus without evidence, shape [F].
    steps
        Points of the integral (Gauss-Legendre).

    Returns
    -------
    ndarray
        float32, shape [n]: attributions summed over features.
    """
    from captum.attr import IntegratedGradients

    patient = torch.zeros(len(features), dtype=torch.int64, device=features.device)

    def score(inputs: torch.Tensor) -> torch.Tensor:
        return network(inputs[0], edges, patient, 1) @ contrast

    attributions = IntegratedGradients(score).attribute(
        features[None],
        baselines=reference.expand(1, *features.shape),
        n_steps=steps,
        internal_batch_size=1,
    )
    return attributions[0].sum(dim=1).float().cpu().numpy()


def attention_weights(
    network: NucleusNetwork, features: torch.Tensor, edges: torch.Tensor
) -> Floats:
    """The readout's weight of each nucleus of one graph, float32, shape [n], summing to 1."""
    with torch.inference_mode():
        return network.attention(features, edges).cpu().numpy()


def top_nuclei(importance: NDArray[Any], share: float, least: int) -> NDArray[np.bool_]:
    """The most important nuclei: a share of all, and at least `least` where there are so many.

    Ties go to the first row. Shape [n], bool; some are kept of any n > 0 when `least` > 0.
    """
    count = min(len(importance), max(least, math.ceil(share * len(importance))))
    kept = np.zeros(len(importance), bool)
    kept[np.argsort(-importance, kind="stable")[:count]] = True
    return kept


def contrast_of(scores: torch.Tensor) -> torch.Tensor:
    """Weights of the outputs, shape [outputs]: the risk, or the highest class against the others.

    Against the mean of the others, for only differences between scores of classes mean anything.
    """
    if len(scores) == 1:
        return torch.ones_like(scores)
    weights = torch.full_like(scores, -1 / (len(scores) - 1))
    weights[scores.argmax()] = 1.0
    return weights


def neighbourhood_mean(values: Floats, edges: NDArray[np.int64], rounds: int) -> Floats:
    """Mean of each node's value and its neighbours', so many times over.

    Parameters
    ----------
    values
        float32, shape [n].
    edges
        Both directions of every edge, shape [2, e].
    """
    size = np.bincount(edges[1], minlength=len(values)) + 1
    mean = values.astype(np.float64)
    for _ in range(rounds):
        mean = (mean + np.bincount(edges[1], mean[edges[0]], len(mean))) / size
    return mean.astype(np.float32)
