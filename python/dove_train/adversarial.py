"""The adversarial term of L_rec (Eq. 2): a discriminator of patches and the hinge losses of both sides.

A step of the loop, as in VQGAN (arXiv 2012.09841, section 3.1):

    discriminator.requires_grad_(False)  # the generator's pass: gradients go through it, not into it
    loss = loss + gan_weight * generator_loss(discriminator(reconstruction))
    ...
    discriminator.requires_grad_(True)  # its own pass, on detached images
    discriminator_loss(discriminator(pixels), discriminator(reconstruction.detach())).mean().backward()

Without the first line the generator's backward would add to the discriminator's gradients, with the wrong
sign.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dove_train.distributed import World
from dove_train.settings import Settings

NORM_GROUPS = 32
LEARNING_RATE = 1e-4  # of the discriminator's own AdamW


class PatchDiscriminator(nn.Module):
    """PatchGAN (pix2pix, arXiv 1611.07004, section 3.2.2): one logit for each patch of 70 x 70 pixels.

    Batch normalisation, which pix2pix and VQGAN use here, would mix the images of a batch: the verdict on an
    image would depend on which others it came with, two processes would differ from one with the doubled
    batch, and real and fake images could be told apart by their batch alone. Group normalisation sees one
    image at a time.

    Args:
        channels: of the first layer; the others have two, four and eight times as many. A multiple of 16.
    """

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        modules: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2, True)]
        width = channels
        for multiple, stride in ((2, 2), (4, 2), (8, 1)):
            wider = channels * multiple
            # The norm's own shift stands in for a bias.
            modules += [
                nn.Conv2d(width, wider, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(NORM_GROUPS, wider),
                nn.LeakyReLU(0.2, True),
            ]
            width = wider
        modules.append(nn.Conv2d(width, 1, 4, stride=1, padding=1))
        self.layers = nn.Sequential(*modules)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """How real each patch looks.

        Args:
            images: [B, 3, H, W] in [-1, 1], H and W at least 32.

        Returns:
            Tensor: logits [B, 1, H / 8 - 2, W / 8 - 2], above 0 for real, in the dtype of the computation.
        """
        logits: Tensor = self.layers(images)
        return logits


def _initialise(module: nn.Module) -> None:
    """Weights as in pix2pix (section 6.2): from a normal distribution of deviation 0.02."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Hinge loss of the discriminator (arXiv 1705.02894, as VQGAN uses it): 1/2 of both sides' sum.

    max(0, 1 - D(x)) and max(0, 1 + D(x_hat)), each averaged over the patches.

    Args:
        real_logits: D(x), [B, 1, h, w].
        fake_logits: D(x_hat) of detached images, likewise.

    Returns:
        Tensor: float32 [B]; 1 for a discriminator that says 0 to all.
    """
    real = F.relu(1 - real_logits.float()).flatten(1).mean(1)
    fake = F.relu(1 + fake_logits.float()).flatten(1).mean(1)
    return (real + fake) / 2


def generator_loss(fake_logits: Tensor) -> Tensor:
    """L_gan of each image (Eq. 2): -D(x_hat), averaged over the patches (arXiv 1705.02894).

    Args:
        fake_logits: D(x_hat), [B, 1, h, w].

    Returns:
        Tensor: float32 [B].
    """
    return -fake_logits.float().flatten(1).mean(1)


class Adversary:
    """The discriminator as a run uses it: spread over the processes, with an optimiser of its own."""

    def __init__(self, settings: Settings, world: World) -> None:
        self.settings, self.world = settings, world
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.network = PatchDiscriminator().to(world.device)
        self.spread = world.spread_whole(self.network)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=LEARNING_RATE, betas=(0.5, 0.9))

    def generator_loss(self, reconstruction: Tensor) -> Tensor:
        """L_gan of each image [B, 3, S, S]: [B]; its gradient does not reach the discriminator's weights."""
        self.network.requires_grad_(False)
        return generator_loss(self.network(reconstruction))

    def step(self, judged: list[tuple[Tensor, Tensor]]) -> float:
        """Train the discriminator on the (real, reconstructed) pairs of one step; returns its mean loss."""
        self.network.requires_grad_(True)
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for real, fake in judged:
            with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.settings.bf16):
                logits = self.spread(torch.cat([real, fake]))
                loss = discriminator_loss(*logits.chunk(2)).mean() / len(judged)
            loss.backward()
            total += loss.item()
        self.optimizer.step()
        return self.world.mean(total)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`'s result."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
