"""The VQGAN of DOVE (2.1): a convolutional encoder and decoder with attention at the coarsest level.

The names of the parameters are those of the public taming checkpoints. Everything runs in channels-last
memory. A residual branch's sum is not formed where the branch ends but inside the next normalisation, which
has to read it anyway, and on a GPU the same holds for the bias of a convolution: blocks hand on a `Stream`,
an activation in parts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dove_ext import ops
from dove_ext.config import VQGANConfig
from dove_ext.fork import lead_threads
from dove_ext.models.packed import Packed, wants_packed
from dove_ext.models.precision import full_precision
from dove_ext.models.pretrained import Pretrained
from dove_ext.ops.backend import has_kernels


class Stream(NamedTuple):
    """The activation x + branch + bias, whose parts are added by what reads it next."""

    x: Tensor  # [B, C, H, W]
    branch: Tensor | None = None  # as x
    bias: Tensor | None = None  # [C]

    def settled(self, *, pad: int = 0) -> Tensor:
        """The activation itself, with `pad` rows of zeros below and as many columns to the right."""
        if self.branch is None and self.bias is None and not pad:
            return self.x
        if leaves_bias(self.x):
            return ops.residual_sum(self.x, self.branch, self.bias, pad=pad)
        x = self.x if self.branch is None else self.x + self.branch
        return F.pad(x, (0, pad, 0, pad)) if pad else x

    def plus(self, branch: Stream) -> Stream:
        """The sum with the end of a branch, which is not in parts beyond its bias."""
        x, bias = (self.x, self.bias) if self.branch is None else (self.settled(), None)
        if bias is not None and branch.bias is not None:
            bias = bias + branch.bias
        return Stream(x, branch.x, branch.bias if bias is None else bias)


def leaves_bias(x: Tensor) -> bool:
    """Whether convolutions of `x` leave their bias to what reads them: cuDNN adds it in a pass of its own."""
    return x.is_cuda and has_kernels(x)


def convolve(conv: nn.Conv2d, x: Tensor) -> Stream:
    """conv(x), on a GPU with its bias still to be added."""
    if not leaves_bias(x):
        return Stream(conv(x))
    return Stream(F.conv2d(x, conv.weight, None, conv.stride, conv.padding), bias=conv.bias)


CPU_BATCH = 8
"""Images that run together through the compiled convolutions on a CPU; more only take more memory."""


def in_parts(function: Callable[..., Tensor], batch: Tensor, *more: Tensor | None) -> Tensor:
    """function(batch, *more), on a CPU in parts of `CPU_BATCH` images where no gradient is wanted."""
    whole = batch.device.type != "cpu" or not has_kernels(batch) or torch.is_grad_enabled()
    if whole or len(batch) <= CPU_BATCH:
        return function(batch, *more)
    parts = []
    for start in range(0, len(batch), CPU_BATCH):
        of = slice(start, start + CPU_BATCH)
        parts.append(function(batch[of], *(None if t is None else t[of] for t in more)))
    return torch.cat(parts)


class Norm(nn.GroupNorm):
    """GroupNorm of 32 groups, eps 1e-6, optionally followed by SiLU."""

    def __init__(self, channels: int, *, silu: bool = True) -> None:
        super().__init__(32, channels, eps=1e-6)
        self.silu = silu

    def forward(self, stream: Stream) -> tuple[Tensor, Stream]:  # type: ignore[override]
        """(normalised activation, activation) of a stream; the latter without a branch."""
        x, branch, bias = stream
        out = ops.group_norm(
            x, self.weight, self.bias, groups=self.num_groups, eps=self.eps, silu=self.silu, residual=branch,
            x_bias=bias,
        )  # fmt: skip
        return (out, stream) if isinstance(out, Tensor) else (out[0], Stream(out[1]))


class Conv3x3(nn.Conv2d):
    """3x3 convolution that keeps the resolution.

    Where no gradient is wanted, the CPU's compiled kernel takes the normalisation before it and the residual
    sum behind it into the same pass over memory. It reads the weights in a form of its own, float32 and four
    times as many, which is made when it is first needed and again when the weights have changed.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1)
        self._packed = Packed(ops.pack_conv3x3)

    def fuses(self, x: Tensor) -> bool:
        """Whether `fused` takes this input."""
        whole = not self.in_channels % ops.conv.CHANNELS and not self.out_channels % ops.conv.CHANNELS
        return whole and wants_packed(x, self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] to [B, C_out, H, W]."""
        return self.fused(x) if self.fuses(x) else super().forward(x)

    def after(self, norm: Norm, stream: Stream) -> Tensor:
        """conv(norm(stream))."""
        return self.fused(stream.settled(), norm) if self.fuses(stream.x) else self(norm(stream)[0])

    def fused(self, x: Tensor, norm: Norm | None = None, residual: Tensor | None = None) -> Tensor:
        """conv(norm(x)) + residual, for an `x` that `fuses`."""
        packed = self._packed.of(self.weight)
        assert self.bias is not None
        if norm is None:
            return ops.conv3x3(x, self.weight, self.bias, residual=residual, packed=packed)
        return ops.conv3x3(
            x, self.weight, self.bias, norm_weight=norm.weight, norm_bias=norm.bias, groups=norm.num_groups,
            eps=norm.eps, silu=norm.silu, residual=residual, packed=packed,
        )  # fmt: skip


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 convolution of x where the width changes."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = Norm(channels_in)
        self.conv1 = Conv3x3(channels_in, channels_out)
        self.norm2 = Norm(channels_out)
        self.conv2 = Conv3x3(channels_out, channels_out)
        self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else None

    def forward(self, stream: Stream) -> Stream:
        """Stream of width channels_in to stream of width channels_out."""
        if self.conv1.fuses(stream.x):
            x = stream.settled()
            skip = x if self.nin_shortcut is None else self.nin_shortcut(x)
            return Stream(self.conv2.fused(self.conv1.fused(x, self.norm1), self.norm2, skip))
        normed, stream = self.norm1(stream)
        normed, _ = self.norm2(convolve(self.conv1, normed))
        if self.nin_shortcut is not None:
            stream = convolve(self.nin_shortcut, stream.settled())
        return stream.plus(convolve(self.conv2, normed))


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions of the grid, as a residual branch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = Norm(channels, silu=False)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, stream: Stream) -> Stream:
        """Stream to stream of the same shape."""
        normed, stream = self.norm(stream)
        height, width = normed.shape[2:]
        q, k, v = (conv(normed).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))  # [B, HW, C]
        # One head as wide as the level (512 in the paper's shape): two matrix products, no kernel of ours.
        attended = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return stream.plus(convolve(self.proj_out, attended.transpose(1, 2).unflatten(2, (height, width))))


class Downsample(nn.Module):
    """3x3 convolution of stride 2 after padding one row below and one column to the right."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, stream: Stream) -> Stream:
        """Stream at H x W to stream at H/2 x W/2."""
        return convolve(self.conv, stream.settled(pad=1))


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv3x3(channels, channels)

    def forward(self, stream: Stream) -> Stream:
        """Stream at H x W to stream at 2H x 2W."""
        return convolve(self.conv, F.interpolate(stream.settled(), scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks of one resolution: residual blocks, each followed by attention at the coarsest level."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int, attention: bool) -> None:
        super().__init__()
        widths = [channels_in] + [channels_out] * blocks
        self.block = nn.ModuleList(ResidualBlock(widths[i], widths[i + 1]) for i in range(blocks))
        self.attn = nn.ModuleList(AttentionBlock(channels_out) for _ in range(blocks if attention else 0))
        self.downsample: Downsample | None = None
        self.upsample: Upsample | None = None

    def forward(self, stream: Stream) -> Stream:
        """Stream in, stream out, resampled at the end."""
        for i, block in enumerate(self.block):
            stream = block(stream)
            if self.attn:
                stream = self.attn[i](stream)
        for resample in (self.downsample, self.upsample):
            if resample is not None:
                stream = resample(stream)
        # A level is what FSDP shards: behind it, its parameters are no longer there.
        return stream if stream.bias is None else stream._replace(bias=stream.bias.clone())


class Middle(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels)
        self.attn_1 = AttentionBlock(channels)
        self.block_2 = ResidualBlock(channels, channels)

    def forward(self, stream: Stream) -> Stream:
        """Stream to stream of the same shape."""
        return self.block_2(self.attn_1(self.block_1(stream)))


class Encoder(nn.Module):
    """Image [B, 3, S, S] to features [B, latent_channels, S/f, S/f]."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.channel_multipliers]
        patch = config.stem_patch
        self.conv_in = (
            nn.Conv2d(3, config.channels, 3, padding=1)
            if patch == 1
            else nn.Conv2d(3, config.channels, patch, stride=patch)
        )
        self.down = nn.ModuleList()
        for i, width in enumerate(widths):
            last = i == len(widths) - 1
            before = widths[i - 1] if i else config.channels
            level = Level(before, width, config.encoder_blocks, attention=last)
            level.downsample = None if last else Downsample(width)
            self.down.append(level)
        self.mid = Middle(widths[-1])
        self.norm_out = Norm(widths[-1])
        self.conv_out = Conv3x3(widths[-1], config.latent_channels)

    def forward(self, image: Tensor) -> Tensor:
        """Features [B, latent_channels, S/f, S/f] of an image [B, 3, S, S]."""
        stream = convolve(self.conv_in, image)
        for level in self.down:
            stream = level(stream)
        return self.conv_out.after(self.norm_out, self.mid(stream))


class Decoder(nn.Module):
    """Features [B, latent_channels, S/f, S/f] to an image [B, 3, S, S], not clamped."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.channel_multipliers]
        self.stem_patch = config.stem_patch
        self.conv_in = Conv3x3(config.latent_channels, widths[-1])
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList()  # up[i] works at level i, the finest being 0; it is passed last
        for i, width in enumerate(widths):
            last = i == len(widths) - 1
            before = width if last else widths[i + 1]
            level = Level(before, width, config.decoder_blocks, attention=last)
            level.upsample = Upsample(width) if i else None
            self.up.append(level)
        # The patch shortcut's picture, seen at the finest level: what is to be repaired there.
        finest = widths[min(1, len(widths) - 1)]
        self.picture_in: Conv3x3 | None = None
        if config.patch_shortcut:
            self.picture_in = Conv3x3(3 * config.stem_patch**2, finest)
        self.norm_out = Norm(widths[0])
        self.conv_out = Conv3x3(widths[0], 3 * config.stem_patch**2)

    def forward(self, features: Tensor, picture: Tensor | None = None) -> Tensor:
        """Image [B, 3, S, S] of features [B, latent_channels, S/f, S/f], and of a coarse picture."""
        stream: Stream = self.mid(convolve(self.conv_in, features))
        for i in reversed(range(len(self.up))):
            if i == 0 and self.picture_in is not None and picture is not None:
                seen = F.pixel_unshuffle(picture, self.stem_patch).contiguous(
                    memory_format=torch.channels_last
                )
                stream = Stream(stream.plus(convolve(self.picture_in, seen)).settled())
            stream = self.up[i](stream)
        out = self.conv_out.after(self.norm_out, stream)
        return out if self.stem_patch == 1 else F.pixel_shuffle(out, self.stem_patch)


class Quantizer(nn.Module):
    """Nearest codebook entry for each grid position; the VQGAN baseline's discrete bottleneck."""

    def __init__(self, codebook_size: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, width)
        nn.init.uniform_(self.embedding.weight, -1 / codebook_size, 1 / codebook_size)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise latents [B, P, C].

        Returns:
            (Tensor, Tensor): the chosen entries [B, P, C], with a straight-through gradient to the latents,
            and their indices [B, P] int64. Distances are float32, whatever the dtypes: in bfloat16
            many codes are equally near.
        """
        codes = self.embedding.weight.detach().float()
        with torch.autocast(latents.device.type, enabled=False):
            # |z|^2 is the same for every code.
            distance = codes.square().sum(1) - 2 * latents.detach().float() @ codes.T
        indices = distance.argmin(-1)
        # Straight-through estimator: the value of the code, the gradient of the latents.
        return self.embedding(indices).detach() + (latents - latents.detach()), indices


def as_grid(latents: Tensor) -> Tensor:
    """Latents [B, P, C], a square grid row by row, as [B, C, h, w] in channels-last."""
    side = round(latents.shape[1] ** 0.5)
    if side * side != latents.shape[1]:
        raise ValueError(f"latents must form a square grid, got {latents.shape[1]} positions")
    return latents.transpose(1, 2).unflatten(2, (side, side))


def _patches(latents: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A transposed convolution whose stride is its kernel's side, as the matrix product that it is.

    oneDNN's takes three times as long. Latents [B, P, C] and weight [C, 3, side, side] to [B, 3, S, S] in
    channels-last.
    """
    count, side = round(latents.shape[1] ** 0.5), weight.shape[-1]
    values = latents @ weight.permute(0, 2, 3, 1).flatten(1)  # the colours of a pixel side by side
    rows = values.unflatten(2, (side, side, 3)).unflatten(1, (count, count)).transpose(2, 3)
    return rows.reshape(-1, count * side, count * side, 3).add(bias).permute(0, 3, 1, 2)


class VQGAN(Pretrained):
    """The autoencoder around DOVE's tokens, and with its quantiser the fixed-length baseline."""

    config_class: ClassVar[type[VQGANConfig]] = VQGANConfig
    config: VQGANConfig

    def __init__(self, config: VQGANConfig) -> None:
        lead_threads()  # draw the first weights
        super().__init__()
        self.config = config
        width = config.latent_channels
        self.encoder = Encoder(config) if config.encoder_blocks else None
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(width, width, 1) if config.encoder_blocks else None
        self.post_quant_conv = nn.Conv2d(width, width, 1)
        self.quantize = Quantizer(config.codebook_size, width) if config.codebook_size else None
        self.patch_in: nn.Conv2d | None = None
        self.patch_out: nn.ConvTranspose2d | None = None
        if config.patch_shortcut:
            side = config.downsampling
            self.patch_in = nn.Conv2d(3, width, side, stride=side)
            self.patch_out = nn.ConvTranspose2d(width, 3, side, stride=side)

    def encode(self, image: Tensor) -> Tensor:
        """H_v: latents before quantisation.

        Args:
            image: [B, 3, S, S] in [-1, 1], S a multiple of the downsampling.

        Returns:
            Tensor: [B, (S/f)^2, latent_channels], the grid row by row.
        """
        return in_parts(self._encode, image)

    def _encode(self, image: Tensor) -> Tensor:
        image = image.contiguous(memory_format=torch.channels_last)
        latents = None if self.patch_in is None else full_precision(self.patch_in, image)
        if self.encoder is not None and self.quant_conv is not None:
            learned = self.quant_conv(self.encoder(image))
            latents = learned if latents is None else learned + latents
        assert latents is not None  # the configuration asks for one of them
        return latents.flatten(2).transpose(1, 2)  # [B, P, C]; no copy in channels-last

    def picture(self, latents: Tensor) -> Tensor:
        """The patch shortcut's picture of latents [B, P, C], in full precision: [B, 3, S, S]."""
        assert self.patch_out is not None
        return full_precision(_patches, latents, self.patch_out.weight, self.patch_out.bias)

    @property
    def worth(self) -> Tensor:
        """Squared pixel error that a unit of squared error in a latent costs, with `picture`: float32 [C]."""
        assert self.patch_out is not None
        return self.patch_out.weight.detach().float().square().sum((1, 2, 3))

    def decode(self, latents: Tensor, gain: Tensor | None = None) -> Tensor:
        """Pixels of latents.

        Args:
            latents: [B, P, C], a square grid row by row.
            gain: float32 [B], what the convolutions' picture is multiplied by before it is added to the patch
                shortcut's.

        Returns:
            Tensor: [B, 3, S, S], nominally in [-1, 1], not clamped.
        """
        return in_parts(self._decode, latents, gain)

    def _decode(self, latents: Tensor, gain: Tensor | None) -> Tensor:
        grid = as_grid(latents)
        features = self.post_quant_conv(grid)
        if self.patch_out is None:
            image: Tensor = self.decoder(features)
            return image
        picture = self.picture(latents)
        image = self.decoder(features, picture)
        if gain is not None:
            image = image * gain[:, None, None, None].to(image.dtype)
        return picture + image

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The baseline's round trip: (reconstruction [B, 3, S, S], code indices [B, P])."""
        if self.quantize is None:
            raise ValueError("this VQGAN was built without a codebook (codebook_size=0)")
        quantised, indices = self.quantize(self.encode(image))
        return self.decode(quantised), indices

    def card(self) -> str:
        """See `Pretrained.card`."""
        side = self.config.downsampling
        return self.make_card(
            "VQGAN",
            f"A VQGAN: {side} x {side} pixels to one of {self.config.codebook_size} codes",
            module="dove_ext.models.vqgan",
            use="codes = model(pixels)[1]",
        )
