"""The discriminator as a run uses it: spread over the processes, with an optimiser of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dove_train.adversarial import PatchDiscriminator, discriminator_loss, generator_loss
from dove_train.distributed import World
from dove_train.settings import Settings


class Adversary:
    """L_gan of Eq. 2, and what makes it harder to satisfy."""

    def __init__(self, settings: Settings, world: World) -> None:
        self.settings, self.world = settings, world
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.network = PatchDiscriminator().to(world.device)
        self.spread = world.spread_whole(self.network)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=settings.gan_learning_rate, betas=(0.5, 0.9)
        )

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
        return self.world.sum(torch.tensor(total, device=self.world.device)).item() / self.world.size

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`'s result."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
