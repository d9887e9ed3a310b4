"""ResNet50 as a tile encoder (He et al., CVPR 2016), truncated as CLAM does or whole.

After the third block and average pooling an embedding has 1024 dimensions (Lu et al., Nat Biomed
Eng 2021), after the fourth 2048.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DIMENSIONS = {"resnet50": 1024, "resnet50_2048": 2048}
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def build_resnet50(name: str, state: "dict[str, torch.Tensor]") -> "torch.nn.Module":
    """Network of ``resnet50`` or ``resnet50_2048`` in evaluation mode, normalization layers fused.

    Parameters
    ----------
    state
        torchvision's state dict of resnet50; the classifier may be missing.
    """
    import torch
    import torchvision
    from torch.fx.experimental.optimization import fuse

    # On the meta device nothing is drawn: loading an encoder leaves the random numbers alone.
    with torch.device("meta"):
        full = torchvision.models.resnet50(weights=None)
    full.load_state_dict(state, strict=False, assign=True)
    blocks = [full.conv1, full.bn1, full.relu, full.maxpool]
    blocks += [full.layer1, full.layer2, full.layer3]
    if name == "resnet50_2048":
        blocks.append(full.layer4)
    pooled = torch.nn.Sequential(*blocks, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    return fuse(pooled.eval(), inplace=True)
