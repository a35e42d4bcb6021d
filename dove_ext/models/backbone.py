"""A convolutional image classifier without its last layer: what stands where, read off pretrained weights.

The shape is EfficientNet-Lite's (inverted residual blocks, ReLU6, no squeeze-and-excitation), scaled by width
and depth. Batch norms are folded into the convolutions, so there are none here. The last stages keep the
stride of 16 and widen their kernels' steps instead: every position sees what it would see in the classifier.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIDE = 16  # pixels of the image along a position


class Stage(NamedTuple):
    """Blocks of one width.

    Attributes:
        expand: how much wider a block is inside.
        kernel: side of its depthwise convolution.
        stride: of the first block.
        width: channels at width 1.
        blocks: how many at depth 1.
        scaled: whether depth changes their number.
    """

    expand: int
    kernel: int
    stride: int
    width: int
    blocks: int
    scaled: bool = True


STEM = 32  # channels, at any width
STAGES = (
    Stage(1, 3, 1, 16, 1, scaled=False),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 5, 2, 40, 2),
    Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3),
    Stage(6, 5, 2, 192, 4),
    Stage(6, 3, 1, 320, 1, scaled=False),
)
MIDDLE = 4  # the last stage before the classifier's stride becomes 32


def channels(width: int, scale: float) -> int:
    """A width scaled to a multiple of 8, at most a tenth below what the scale asks for."""
    asked = width * scale
    rounded = max(8, int(asked + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * asked else rounded


class Convolution(nn.Conv2d):
    """A convolution that halves the resolution at stride 2 and keeps it at stride 1.

    Of an odd padding the larger half lies below and to the right, where TensorFlow puts it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] to [B, out, H / stride, W / stride]."""
        more = (self.kernel_size[0] - 1) * self.dilation[0] + 1 - self.stride[0]
        if more > 0:
            x = F.pad(x, (more // 2, more - more // 2) * 2)
        return super().forward(x)


class Block(nn.Module):
    """Widen, look around in each channel, narrow; added to the input where the shape allows it."""

    def __init__(self, inputs: int, outputs: int, stage: Stage, *, stride: int, dilation: int) -> None:
        super().__init__()
        inner = inputs * stage.expand
        self.expand = Convolution(inputs, inner, 1) if stage.expand > 1 else None
        self.depthwise = Convolution(
            inner, inner, stage.kernel, stride=stride, dilation=dilation, groups=inner
        )
        self.project = Convolution(inner, outputs, 1)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H / stride, W / stride]."""
        inner = x if self.expand is None else F.relu6(self.expand(x))
        out: Tensor = self.project(F.relu6(self.depthwise(inner)))
        return x + out if self.adds else out


def _blocks(width: float, depth: float) -> Iterator[tuple[int, Block]]:
    """The blocks in order, each with the number of its stage."""
    inputs, stride, dilation = STEM, 2, 1
    for number, stage in enumerate(STAGES):
        outputs = channels(stage.width, width)
        for i in range(math.ceil(stage.blocks * depth) if stage.scaled else stage.blocks):
            step = stage.stride if i == 0 else 1
            widens = stride * step > STRIDE
            yield number, Block(inputs, outputs, stage, stride=1 if widens else step, dilation=dilation)
            stride, dilation = (stride, 2 * dilation) if widens else (stride * step, dilation)
            inputs = outputs


class Backbone(nn.Module):
    """Features of an image at its positions, `STRIDE` pixels a side.

    Args:
        width: scale of all widths but the stem's.
        depth: scale of the number of blocks in the inner stages.

    Attributes:
        features: channels of what `forward` gives.
    """

    def __init__(self, width: float, depth: float) -> None:
        super().__init__()
        self.stem = Convolution(3, STEM, 3, stride=2)
        stages, blocks = zip(*_blocks(width, depth), strict=True)
        self.blocks = nn.ModuleList(blocks)
        self._middle = max(i for i, stage in enumerate(stages) if stage == MIDDLE)
        self.features = channels(STAGES[MIDDLE].width, width) + channels(STAGES[-1].width, width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Middle and last features side by side: [B, features, S / 16, S / 16].

        Args:
            pixels: [B, 3, S, S] in [-1, 1], S a multiple of 32.
        """
        x, found = F.relu6(self.stem(pixels)), []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in (self._middle, len(self.blocks) - 1):
                found.append(x)
        return torch.cat(found, dim=1)
