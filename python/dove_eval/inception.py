"""InceptionV3 with the weights of the original FID, from a local file (Heusel et al. 2017).

The protocol is pinned: 8-bit RGB, resized to 299 x 299 as TensorFlow 1 did (bilinear, corners not aligned, no
antialiasing), scaled by (x - 128) / 128, the 2048 features of the last average pooling. The file is
`pt_inception-2015-12-05-6726825d.pth`, as pytorch-fid and torch-fidelity publish it. Needs torchvision.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dove_ext.errors import CheckpointError
from dove_ext.metrics.weights import torchvision_models

PROTOCOL = (
    "FID: 8-bit images, TensorFlow-1 bilinear resize to 299 x 299, (x - 128) / 128, 2048 features of the "
    "last average pooling"
)


class FidInception(nn.Module):
    """Images to the 2048 features that FID compares.

    torchvision's network is that of the published weights but for its pooling branches: there the border of
    zeros does not count in the mean, and the last block takes the maximum instead.

    Attributes:
        name: of the distance it gives.
        digest: sha256 of the weights file.
    """

    name = "FID"

    def __init__(self, path: str | Path) -> None:
        """Load the weights.

        Raises:
            CheckpointError: if torchvision cannot be imported, or the file is not that of the original FID.
        """
        super().__init__()
        models = torchvision_models()
        path = Path(path)
        if not path.is_file():
            raise CheckpointError(
                f"{str(path)!r} is missing; give FID's weights, pt_inception-2015-12-05-6726825d.pth"
            )
        net: Any = models.Inception3(num_classes=1008, aux_logits=False, init_weights=False)
        try:
            net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # torch.load raises nearly anything on a foreign file
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(
                f"{str(path)!r} does not hold the weights of FID's InceptionV3 ({reason}); give "
                "pt_inception-2015-12-05-6726825d.pth"
            ) from error
        self.digest = hashlib.sha256(path.read_bytes()).hexdigest()
        net.fc = nn.Identity()
        self.net = net.eval().requires_grad_(False)
        for name, block in self.net.named_children():
            if name == "Mixed_7c":
                block.register_forward_pre_hook(self._keep_input)
                block.branch_pool.register_forward_pre_hook(self._maximum)
            elif name.startswith("Mixed") and hasattr(block, "branch_pool"):
                block.branch_pool.register_forward_pre_hook(_mean_without_border)

    def forward(self, images: Tensor) -> Tensor:
        """Features float32 [B, 2048] of images [B, 3, H, W] in [-1, 1] (rounded to 8 bits)."""
        levels = images.float().add(1).mul(127.5).round().clamp(0, 255)
        features: Tensor = self.net((resize_tensorflow1(levels, 299) - 128) / 128)
        return features

    def _keep_input(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        self._input = inputs[0]

    def _maximum(self, _: nn.Module, __: tuple[Tensor]) -> tuple[Tensor]:
        return (F.max_pool2d(self._input, 3, stride=1, padding=1),)


def _mean_without_border(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """From sums over 3 x 3 divided by 9 to sums divided by the positions inside."""
    mean = inputs[0]
    share = F.avg_pool2d(torch.ones_like(mean[:1, :1]), 3, stride=1, padding=1)
    return (mean / share,)


def resize_tensorflow1(images: Tensor, size: int) -> Tensor:
    """TensorFlow 1's `resize_bilinear`, where output pixel i reads position i * in / out.

    [B, C, H, W] to [B, C, size, size].
    """
    for dim in (2, 3):
        length = images.shape[dim]
        at = torch.arange(size, device=images.device, dtype=torch.float32) * (length / size)
        low = at.floor().long().clamp_max(length - 1)
        high = (low + 1).clamp_max(length - 1)
        weight = (at - low).view(-1, 1) if dim == 2 else at - low
        images = torch.lerp(
            images.index_select(dim, low),
            images.index_select(dim, high),
            weight.expand([size, images.shape[3]] if dim == 2 else [size]),
        )
    return images
