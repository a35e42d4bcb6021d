"""The discriminator judges one image at a time; the hinge losses by hand."""

from __future__ import annotations

import pytest
import torch

from dove_train.adversarial import PatchDiscriminator, discriminator_loss, generator_loss

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def discriminator() -> PatchDiscriminator:
    torch.manual_seed(0)
    return PatchDiscriminator(channels=16)


def images(batch: int, size: int = 64) -> torch.Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(2)) * 2 - 1


def test_shape_and_size_of_the_published_network() -> None:
    # pix2pix' 70 x 70 discriminator has 2,768,705 for pairs of images, which have three channels more. Batch
    # norms have as many parameters as ours.
    network = PatchDiscriminator()
    assert sum(p.numel() for p in network.parameters()) == 2_768_705 - 3 * 64 * 4 * 4
    with torch.no_grad():
        assert network(images(1, 256)).shape == (1, 1, 30, 30)
        assert network(images(1, 32)).shape == (1, 1, 2, 2)


def test_a_logit_sees_70_pixels(discriminator: PatchDiscriminator) -> None:
    layers = [m for m in discriminator.layers if not isinstance(m, torch.nn.GroupNorm)]  # a norm sees all
    x = images(1, 192).requires_grad_()
    y = torch.nn.Sequential(*layers)(x)
    (gradient,) = torch.autograd.grad(y[0, 0, 11, 11], x)
    seen = gradient[0].abs().sum(0).nonzero()
    assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [70, 70]


def test_an_image_is_judged_alone(discriminator: PatchDiscriminator) -> None:
    batch = images(4)
    with torch.no_grad():
        together = discriminator(batch)
        alone = torch.cat([discriminator(image[None]) for image in batch])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_two_processes_equal_one_with_the_doubled_batch(discriminator: PatchDiscriminator) -> None:
    real, fake = images(4), images(4).flip(0) * 0.5
    parameters = list(discriminator.parameters())

    def gradients(part: slice) -> list[torch.Tensor]:
        loss = discriminator_loss(discriminator(real[part]), discriminator(fake[part])).mean()
        return list(torch.autograd.grad(loss, parameters))

    whole = gradients(slice(None))
    halves = zip(gradients(slice(0, 2)), gradients(slice(2, 4)), strict=True)
    for expected, (first, second) in zip(whole, halves, strict=True):
        torch.testing.assert_close((first + second) / 2, expected, rtol=1e-3, atol=1e-6)


def test_discriminator_loss_by_hand() -> None:
    real = torch.tensor([[2.0, 0.5], [-1.0, 1.0]]).reshape(2, 1, 1, 2)
    fake = torch.tensor([[-3.0, 0.0], [1.0, -0.5]]).reshape(2, 1, 1, 2)
    # real: (0 + 0.5) / 2, (2 + 0) / 2; fake: (0 + 1) / 2, (2 + 0.5) / 2
    assert discriminator_loss(real, fake).tolist() == [(0.25 + 0.5) / 2, (1 + 1.25) / 2]
    assert discriminator_loss(0 * real, 0 * fake).tolist() == [1, 1]


def test_generator_loss_by_hand() -> None:
    logits = torch.tensor([[3.0, 1.0], [-4.0, 0.0]]).reshape(2, 1, 1, 2)
    assert generator_loss(logits).tolist() == [-2, 2]
    assert generator_loss(logits.bfloat16()).dtype == torch.float32


def test_the_generators_pass_leaves_the_discriminator_alone(discriminator: PatchDiscriminator) -> None:
    reconstruction = images(2).requires_grad_()
    discriminator.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        logits = discriminator(reconstruction)
    generator_loss(logits).mean().backward()
    assert reconstruction.grad is not None and reconstruction.grad.abs().flatten(1).sum(1).min() > 0
    assert all(p.grad is None for p in discriminator.parameters())
    discriminator.requires_grad_(True)
    discriminator_loss(discriminator(images(2)), discriminator(reconstruction.detach())).mean().backward()
    assert all(p.grad is not None for p in discriminator.parameters())


def test_it_learns_to_tell_flat_from_noise() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator(channels=16)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    real, fake = images(4, 32), torch.zeros(4, 3, 32, 32)
    losses = []
    for _ in range(15):
        loss = discriminator_loss(network(real), network(fake)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(1, abs=0.3) and losses[-1] < 0.2
