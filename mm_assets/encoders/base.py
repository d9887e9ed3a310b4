"""What every encoder offers: a name, a weights digest, a size, and uint8 tiles in, vectors out."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

# Passes have a fixed number of tiles, the last filled up with black: another number may make the
# library sum in another order (float32 on one core does), and the same tile must give the same
# bytes whatever it is batched with.
CPU_PASS, CUDA_PASS = 1, 64


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
    input_px
        Edge of the network's input; tiles of another size are resized to it on the device. None:
        any size is taken as it is.
    network
        Maps float (B, 3, H, W) to (B, dimension).
    pass_tiles
        Tiles of one forward pass; see `mm_assets.encoders.batch` for more than the standard.
    """

    name: str
    weights_id: str
    weights_sha256: str
    dimension: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    input_px: int | None
    network: "torch.nn.Module"
    device: "torch.device"
    dtype: "torch.dtype"
    pass_tiles: int

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
        # torch takes no negative strides, and NumPy calls a reversed slice of one tile contiguous.
        straight = batch.copy() if min(batch.strides) < 0 else batch
        passes = self._passes(list(self._parts(straight)))
        embeddings = np.concatenate([np.empty((0, self.dimension), np.float16), *passes])
        embeddings = embeddings[: len(batch)]
        if not np.isfinite(embeddings).all():
            raise ValueError(f"{self.name} ({self.weights_id}) gave values that are not finite")
        return embeddings

    def _parts(self, batch: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
        """Passes of `pass_tiles`, the rest in passes of the standard size."""
        full = len(batch) - len(batch) % self.pass_tiles
        for start in range(0, full, self.pass_tiles):
            yield batch[start : start + self.pass_tiles]
        small = min(self.pass_tiles, CUDA_PASS)
        for start in range(full, len(batch), small):
            yield _filled(batch[start : start + small], small)

    def _passes(self, parts: list[NDArray[np.uint8]]) -> list[NDArray[np.float16]]:
        import torch

        if self.device.type == "cuda":
            return [self._forward(part) for part in parts]
        # Side by side, one thread each: threads that share a pass wait for the slowest of them at
        # every layer, which beside other work left a quarter of the speed (2 cores, one of them
        # busy: 2.6 tiles/s against 11; undisturbed 26 against 34).
        threads = torch.get_num_threads()
        cores = os.cpu_count() or 1
        try:
            with ThreadPoolExecutor(cores, "encode", torch.set_num_threads, (1,)) as pool:
                return list(pool.map(self._forward, parts))
        finally:
            torch.set_num_threads(threads)

    def _forward(self, batch: NDArray[np.uint8]) -> NDArray[np.float16]:
        import torch

        deterministic = torch.backends.cudnn.flags(enabled=True, deterministic=True)
        with torch.inference_mode(), deterministic:
            features = self.network(self.normalized(batch)).half().cpu().numpy()
        return np.asarray(features, dtype=np.float16)

    def normalized(self, batch: NDArray[np.uint8]) -> "torch.Tensor":
        """Tiles, uint8 (B, H, W, 3), as the network takes them, on its device."""
        import torch

        tiles = torch.from_numpy(np.ascontiguousarray(batch))
        pixels = tiles.to(self.device).permute(0, 3, 1, 2)
        mean = torch.tensor(self.mean, device=self.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=self.device).view(1, 3, 1, 1)
        scaled = (_resized(pixels.float(), self.input_px) / 255 - mean) / std
        return scaled.to(self.dtype).contiguous(memory_format=torch.channels_last)


def _resized(pixels: "torch.Tensor", edge: int | None) -> "torch.Tensor":
    import torch

    if edge is None or pixels.shape[-1] == edge:
        return pixels
    return torch.nn.functional.interpolate(pixels, (edge, edge), mode="bilinear", antialias=True)


def _filled(part: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Tiles followed by as many black ones as a pass lacks."""
    return np.pad(part, ((0, size - len(part)), (0, 0), (0, 0), (0, 0)))
