"""L_total of one pass (Eq. 4), and the running values that its terms compare with."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dove_ext.metrics import mse, perceptual_distance
from dove_train.adversarial import Adversary
from dove_train.distributed import World
from dove_train.length_sampling import DEFAULT_TARGET, FixedThreshold, RunningThreshold, TargetThreshold
from dove_train.losses import (
    gaussian_loss,
    paper_eos_loss,
    quantiser_loss,
    reconstruction_loss,
    sampled_eos_loss,
)
from dove_train.pointing import pointing_loss
from dove_train.region_losses import irrelevant_loss, length_penalty, outside, query_loss, relevant_loss
from dove_train.settings import Settings
from dove_train.stages import Outputs


class Objective:
    """The losses of a run with their state; the same in every process.

    Args:
        settings: of the run.
        world: its processes.
        promised_psnr: in dB, of a model that promises a quality: its stops are judged by the squared error
            of that, by the sampled rule; None: by L_rec, with a threshold that moves.
    """

    def __init__(self, settings: Settings, world: World, promised_psnr: float | None = None) -> None:
        self.promised_psnr = promised_psnr
        self.settings, self.world = settings, world
        self.perceptual = None
        if settings.perceptual and settings.perceptual_weight:
            weights = Path(settings.perceptual_weights) if settings.perceptual_weights else None
            self.perceptual = perceptual_distance(settings.perceptual, weights).to(world.device)
        self.adversary = Adversary(settings, world) if settings.gan_weight else None
        self.outside_threshold = RunningThreshold()  # of L_irr (Q-DOVE)
        self.threshold: RunningThreshold | TargetThreshold | FixedThreshold
        if settings.eos_rule == "paper":
            self.threshold = RunningThreshold()
        elif promised_psnr is not None:
            self.threshold = FixedThreshold(4 * 10 ** (-promised_psnr / 10))
        else:
            self.threshold = TargetThreshold(settings.target_length or DEFAULT_TARGET)

    def __call__(
        self,
        outputs: Outputs,
        pixels: Tensor,
        *,
        lambda_eos: float,
        undecided: int,
        adversarial: bool,
        boxes: list[Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What to take the gradient of, and what to log.

        Sums are divided by the images of a whole step in one process, so that gradients may be summed over
        passes and averaged over processes.

        Args:
            outputs: of a path, for a batch of B.
            pixels: [B, 3, S, S] in [-1, 1].
            lambda_eos: weight of L_eos.
            undecided: images of the step, over all processes, whose sampled length is below K.
            adversarial: add lambda_gan L_gan.
            boxes: float [n, 4] of each image, what its query asks for (2.3): L_qry (Eq. 7) takes the place of
                L_rec, and L_rel, which is logged as the loss, is what thresholds compare. None: no queries.

        Returns:
            (Tensor, dict): a scalar, and for each name the sum of its values over the batch, detached.
        """
        s = self.settings
        images = s.batch_size * s.accumulate
        if outputs.reconstruction is None:
            if outputs.pointed is not None and boxes is not None:
                loss = pointing_loss(outputs.pointed, boxes)
            else:
                assert outputs.alignment is not None
                loss = outputs.alignment
            return loss.sum() / images, {"images": torch.ones_like(loss).sum(), "loss": loss.detach().sum()}
        distance = partial(
            reconstruction_loss,
            mse_weight=s.mse_weight,
            perceptual=self.perceptual,
            perceptual_weight=s.perceptual_weight,
        )
        background: Tensor | None = None
        if boxes is None:
            each = loss = distance(outputs.reconstruction, pixels)
        else:
            loss = relevant_loss(outputs.reconstruction, pixels, boxes, distance)
            mask = outside(boxes, pixels.shape[-1], len(pixels)).to(pixels.device)
            background = irrelevant_loss(outputs.reconstruction, pixels, mask)
            has_outside = mask.flatten(1).any(1)
            each = query_loss(loss, background)
        tally: dict[str, Tensor] = {"images": torch.full_like(loss, 1.0), "loss": loss}
        if s.loss_scale == "relative":
            # The gradient of log L_rec, which PSNR follows: the error at 4 tokens is a hundred times that at
            # 256, and that of a cluttered room a hundred times that of a wall.
            each = each / loss.detach().clamp_min(1e-8)
        if adversarial and self.adversary is not None:
            gan = self.adversary.generator_loss(outputs.reconstruction)
            each, tally["gan"] = each + s.gan_weight * gan, gan
        if outputs.divergence is not None and outputs.lengths is not None:
            kl = gaussian_loss(outputs.divergence, outputs.lengths)
            each, tally["kl"] = each + s.kl_weight * kl, kl
        if outputs.alignment is not None:
            each = each + s.alignment_weight * outputs.alignment
            tally["alignment"] = outputs.alignment
        if outputs.latents is not None and outputs.codes is not None:
            quantiser = quantiser_loss(outputs.latents, outputs.codes)
            each, tally["quantiser"] = each + quantiser, quantiser
        total = each.sum() / images
        if outputs.p_eos is not None and outputs.lengths is not None and outputs.stops is not None:
            threshold = self.threshold.value(self._mean(self.threshold, loss))
            if s.eos_rule == "paper":
                eos = paper_eos_loss(outputs.p_eos, outputs.stops, loss, threshold)
                total = total + lambda_eos * eos.sum() / images
            else:
                judged = loss
                if self.promised_psnr is not None:  # as PSNR is measured: what is out of range is cut off
                    judged = 4 * mse(outputs.reconstruction.detach(), pixels, black=-1.0)
                    if outputs.margin is not None:
                        judged = judged * 10 ** (outputs.margin / 10)
                eos = sampled_eos_loss(outputs.p_eos, outputs.lengths, judged, threshold)
                total = total + lambda_eos * eos.sum() * self.world.size / max(1, undecided)
            tally |= {"eos": eos, "length": outputs.stops.clamp_min(1).float()}
            if background is not None:
                enough = self.outside_threshold.value(
                    self._mean(self.outside_threshold, background, has_outside)
                )
                # m is where the reconstruction, whose background is judged, was cut off.
                ends = outputs.stops if s.eos_rule == "paper" else outputs.lengths
                penalty = length_penalty(outputs.p_eos, ends, background, has_outside, enough)
                total = total + lambda_eos * penalty.sum() / images
                tally |= {"penalty": penalty, "outside": background, "asked": has_outside}
        return total, {name: values.detach().float().sum() for name, values in tally.items()}

    def _mean(
        self,
        threshold: RunningThreshold | TargetThreshold | FixedThreshold,
        loss: Tensor,
        of: Tensor | None = None,
    ) -> float:
        """Mean loss over all processes, where its threshold still needs one to begin with.

        Args:
            threshold: of this loss.
            loss: [B].
            of: bool [B], the images that count; None: all. Without any in all processes it is 0.
        """
        if not threshold.empty:
            return 0.0
        counts = torch.ones_like(loss) if of is None else of.to(loss.dtype)
        sums = self.world.sum(torch.stack([(loss.detach() * counts).sum(), counts.sum()]))
        return (sums[0] / sums[1].clamp_min(1)).item()

    def update(self, means: dict[str, float], lambda_eos: float) -> None:
        """Move the threshold by one step's means, which are the same in every process.

        The sampled rule's threshold stays as it is while lambda_eos is 0: the head is not trained yet, so its
        lengths are arbitrary, and the threshold would drift with them.
        """
        if "length" in means and (lambda_eos > 0 or self.settings.eos_rule == "paper"):
            self.threshold.update(means["loss"], means["length"])
        if means.get("asked"):
            self.outside_threshold.update(means["outside"] / means["asked"], means["length"])

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "threshold": self.threshold.state(),
            "outside": self.outside_threshold.state(),
            "adversary": None if self.adversary is None else self.adversary.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`'s result."""
        self.threshold.restore(state["threshold"])
        self.outside_threshold.restore(state.get("outside", []))
        if self.adversary is not None:
            self.adversary.restore(state["adversary"])
