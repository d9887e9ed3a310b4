"""What every encoder offers: a name, a weights digest, a size, and uint8 tiles in, vectors out."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

# Every forward pass has this many tiles, the last filled up with black: another number may make
# the library sum in another order (float32 on one core does), and the same tile must give the
# same bytes whatever it is batched with.
CPU_BATCH, CUDA_BATCH = 4, 64


@dataclass(frozen=True)
class Encoder:
    """A frozen network that embeds tiles; made by `mm_assets.encoders.registry.load_encoder`.

    Attributes
    ----------
    name
        Name in the registry, for example ``resnet50``.
    weights_id
        Stamp of the weights: ``imagenet:IMAGENET1K_V2``, ``random:0``, or a file name.
    weights_sha256
        Digest of the parameters, hexadecimal.
    dimension
        Length of an embedding.
    mean, std
        Per channel, of pixel values from 0 to 1.
    network
        Maps float (B, 3, H, W) to (B, dimension).
    """

    name: str
    weights_id: str
    weights_sha256: str
    dimension: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    network: "torch.nn.Module"
    device: "torch.device"
    dtype: "torch.dtype"

    def encode(self, batch: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Embed tiles; normalization happens on the device.

        A tile's embedding does not depend on the batch it comes in.

        Parameters
        ----------
        batch
            uint8 (B, H, W, 3), RGB.

        Returns
        -------
        float16 (B, dimension).

        Raises
        ------
        ValueError
            When an embedding is not a number or too large for float16.
        """
        size = CUDA_BATCH if self.device.type == "cuda" else CPU_BATCH
        embeddings = np.empty((len(batch), self.dimension), np.float16)
        for start in range(0, len(batch), size):
            part = batch[start : start + size]
            missing = size - len(part)
            full = np.pad(part, ((0, missing), (0, 0), (0, 0), (0, 0))) if missing else part
            embeddings[start : start + size] = self._forward(full)[: len(part)]
        if not np.isfinite(embeddings).all():
            raise ValueError(f"{self.name} ({self.weights_id}) gave values that are not finite")
        return embeddings

    def _forward(self, batch: NDArray[np.uint8]) -> NDArray[np.float16]:
        import torch

        deterministic = torch.backends.cudnn.flags(enabled=True, deterministic=True)
        with torch.inference_mode(), deterministic:
            tiles = torch.from_numpy(np.ascontiguousarray(batch))
            pixels = tiles.to(self.device).permute(0, 3, 1, 2)
            mean = torch.tensor(self.mean, device=self.device).view(1, 3, 1, 1)
            std = torch.tensor(self.std, device=self.device).view(1, 3, 1, 1)
            normalized = (pixels.float() / 255 - mean) / std
            inputs = normalized.to(self.dtype).contiguous(memory_format=torch.channels_last)
            features = self.network(inputs).half().cpu().numpy()
        return np.asarray(features, dtype=np.float16)
