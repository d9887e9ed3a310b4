"""The graph network: GraphSAGE layers and a gated attention readout.

Hamilton, Ying and Leskovec (NeurIPS 2017) for the layers, Ilse, Tomczak and Welling (ICML 2018) for
attention as pooling. Scores are linear in the attention-weighted mean, so a nucleus counts by its
attention times its own evidence.
"""

import torch
from torch import Tensor, nn
from torch_geometric.nn import AttentionalAggregation, SAGEConv
from torch_geometric.utils import softmax


class NucleusNetwork(nn.Module):
    """Scores of patients from the graphs of their nuclei.

    Parameters
    ----------
    inputs
        Features of a nucleus.
    hidden
        Width of every layer.
    layers
        GraphSAGE layers, each of which looks one edge further.
    outputs
        Scores a patient.
    dropout
        Share of features of a nucleus set to zero before each layer in training.
    """

    def __init__(self, inputs: int, hidden: int, layers: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.entry = nn.Linear(inputs, hidden)
        self.convolutions = nn.ModuleList(SAGEConv(hidden, hidden) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)
        gate = nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 1))
        self.readout = AttentionalAggregation(gate)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, features: Tensor, edges: Tensor, patient: Tensor, patients: int) -> Tensor:
        """Scores, shape [patients, outputs].

        Parameters
        ----------
        features
            float32, shape [n, inputs].
        edges
            int64, shape [2, e], both directions of every edge.
        patient
            Which patient each nucleus belongs to, int64 below `patients`, ascending, shape [n].
        """
        hidden = self._encode(features, edges)
        return self.head(self.readout(hidden, patient, dim_size=patients))

    def attention(self, features: Tensor, edges: Tensor) -> Tensor:
        """Attention weight of each nucleus of one graph; they sum to 1; shape [n]."""
        gate = self.readout.gate_nn(self._encode(features, edges))
        return softmax(gate, torch.zeros(len(gate), dtype=torch.int64, device=gate.device))[:, 0]

    def _encode(self, features: Tensor, edges: Tensor) -> Tensor:
        hidden = torch.relu(self.entry(features))
        for convolution in self.convolutions:
            hidden = hidden + torch.relu(convolution(self.dropout(hidden), edges))
        return hidden
