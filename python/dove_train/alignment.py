"""Feature distillation: the generator's hidden states and its tokens predict what a frozen network sees.

Reconstruction alone teaches a code of patches little about what is in a picture. So one linear map of the
mean hidden state predicts the teacher's features of the whole image, another one of each position those at
that position. The teacher sees the sharp image, the generator often a low-resolution copy of it, which
makes the features robust to small and blurred pictures. Tokens are read as their users do: the mean of the
first n predicts the whole image, for several n at once, and a cross-attention over them each position. The
paper has no such term: its stack starts from a
trained language model and is trained for far longer.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dove_train.distributed import whole
from dove_train.length_sampling import sample_numbers
from dove_train.teachers import Teacher

STATISTICS_IMAGES = 256  # enough for a mean and a deviation of each feature
GRID_WEIGHT = 0.5  # of the positions' term beside the whole image's
LEAST_AREA = 0.35  # of the random square that both look at, as a share of the image
COARSE_SHARE = 0.7  # of the images of which the model sees a low-resolution copy
COARSE_SIDES = (32, 128)  # least and largest side of such a copy, in pixels, drawn evenly by its logarithm


class Alignment(nn.Module):
    """Squared distance of linear maps of hidden states from a teacher's standardised features.

    Args:
        hidden: width of the hidden states.
        grid: positions along a side.
        teacher: frozen.
        token_width: width of the tokens' semantic part; 0: tokens are not aligned.
    """

    def __init__(self, hidden: int, grid: int, teacher: Teacher, *, token_width: int = 0) -> None:
        super().__init__()
        # In a tuple, so that it is no submodule: it is neither trained, nor sharded, nor in checkpoints.
        self.teacher = (teacher,)
        self.grid = grid
        widths = teacher.widths
        # Needed by the loss only, so no part of the model.
        self.heads = nn.ModuleDict({name: nn.Linear(hidden, width) for name, width in widths.items()})
        if token_width:
            self.heads["tokens"] = TokenReader(token_width, grid, widths)
        for name, width in widths.items():
            self.register_buffer(f"{name}_mean", torch.zeros(width))
            self.register_buffer(f"{name}_deviation", torch.ones(width))

    @property
    def reader(self) -> TokenReader | None:
        """What reads the tokens, if they are aligned."""
        reader = dict(self.heads).get("tokens")
        assert reader is None or isinstance(reader, TokenReader)
        return reader

    def _apply(self, *args: Any, **kwargs: Any) -> Alignment:
        self.teacher[0]._apply(*args, **kwargs)  # it goes to the same device
        return super()._apply(*args, **kwargs)

    @torch.compiler.disable  # sizes are drawn
    def views(self, pixels: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """What the teacher sees, and what the model sees: a random square of each image, coarse or not.

        Args:
            pixels: [B, 3, S, S] in [-1, 1].
            draws: `draw_views` of these images.

        Returns:
            (Tensor, Tensor): of the same shape and range.
        """
        side = pixels.shape[-1]
        sharp, seen = [], []
        for image, drawn in zip(pixels, draws.tolist(), strict=True):
            cut = max(1, round(side * math.sqrt(LEAST_AREA + (1 - LEAST_AREA) * drawn[0])))
            top, left = (int((side - cut) * place) for place in drawn[1:3])
            view = _scale(image[None, :, top : top + cut, left : left + cut], side)
            sharp.append(view)
            if drawn[3] < COARSE_SHARE:
                low, high = COARSE_SIDES
                view = _scale(_scale(view, round(low * (high / low) ** drawn[4])), side)
            seen.append(view)
        return torch.cat(sharp), torch.cat(seen)

    @torch.no_grad()
    def targets(self, images: Tensor) -> dict[str, Tensor]:
        """The teacher's features of images [B, 3, S, S]: "whole" [B, 1, F], "grid" [B, P, G]."""
        every, grid = self.teacher[0](images)
        grid = F.adaptive_avg_pool2d(grid, self.grid)
        return {"whole": every[:, None], "grid": grid.flatten(2).transpose(1, 2)}

    @torch.no_grad()
    def measure(self, images: Tensor, batch_size: int) -> None:
        """Take the features' means and deviations from images [N, 3, S, S] in [-1, 1]."""
        device = self.get_buffer("whole_mean").device
        parts = [self.targets(part.to(device)) for part in images.split(batch_size)]
        for name in ("whole", "grid"):
            values = torch.cat([part[name] for part in parts]).flatten(0, 1)
            self.get_buffer(f"{name}_mean").copy_(values.mean(0))
            # A feature that hardly ever fires would be all noise at unit deviation.
            self.get_buffer(f"{name}_deviation").copy_(values.std(0) + 1e-3)

    def forward(self, hidden: Tensor, images: Tensor, tokens: Tensor | None = None) -> Tensor:
        """The distance of each image.

        Args:
            hidden: [B, P, hidden], of what the model saw.
            images: [B, 3, S, S] in [-1, 1], what the teacher is to see.
            tokens: [B, n, token_width], the semantic part of the first tokens, if tokens are aligned.

        Returns:
            Tensor: float32 [B]; about 1 + GRID_WEIGHT if the maps predict nothing but the means, twice that
            where tokens are aligned, too.
        """
        said = {
            "whole": self.heads["whole"](hidden.mean(1, keepdim=True)),
            "grid": self.heads["grid"](hidden),
        }
        read = {} if self.reader is None or tokens is None else self.reader(tokens)
        loss: dict[str, Tensor] = {}
        for name, target in self.targets(images).items():
            target = (target - self.get_buffer(f"{name}_mean")) / self.get_buffer(f"{name}_deviation")
            loss[name] = (said[name].float() - target).square().mean((1, 2))
            if name in read:
                loss[name] = loss[name] + (read[name].float() - target).square().mean((1, 2))
        return loss["whole"] + GRID_WEIGHT * loss["grid"]

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, whole; every process must call it."""
        return {name: whole(tensor) for name, tensor in self.state_dict().items()}


class TokenReader(nn.Module):
    """What a prefix of tokens says of the whole image and of each place.

    Args:
        width: of the tokens.
        grid: places along a side.
        widths: of the features: "whole" and "grid".
    """

    def __init__(self, width: int, grid: int, widths: dict[str, int]) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(grid * grid, width) * width**-0.5)
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.whole = nn.Linear(width, widths["whole"])
        self.grid = nn.Linear(width, widths["grid"])

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """Predictions from tokens [B, n, width].

        Returns:
            dict: "whole" [B, L, F] from the first n, n/2, n/4, ... 1 tokens, "grid" [B, P, G] from all.
        """
        count = tokens.shape[1]
        lengths = [count >> k for k in range(count.bit_length())]
        means = torch.stack([tokens[:, :n].mean(1) for n in lengths], dim=1)
        key, value = self.key(tokens), self.value(tokens)
        places = F.scaled_dot_product_attention(self.place.expand(len(tokens), -1, -1), key, value)
        return {"whole": self.whole(means), "grid": self.grid(places)}


def draw_views(seed: int, first: int, count: int) -> Tensor:
    """Five `sample_numbers` for each of the samples `first`, ... of a run: float64 [count, 5]."""
    return torch.from_numpy(sample_numbers(seed, 5, first, count, 5))


def _scale(image: Tensor, side: int) -> Tensor:
    """[1, 3, H, H] to [1, 3, side, side], bicubic, antialiased, within [-1, 1]."""
    size = (side, side)
    scaled = F.interpolate(image, size=size, mode="bicubic", antialias=True, align_corners=False)
    return scaled.clamp(-1, 1)
