"""What stands side by side: DOVE models, the VQGAN baseline, raw pixels, and JPEG and WebP as yardsticks.

A system may reconstruct (`reconstruct`), give features for classifiers (`features`), or both.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import PIL
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from dove_ext.images.files import pil_to_tensor, to_pil
from dove_ext.metrics import OWN, at_lengths, own_lengths
from dove_ext.models.dove import DoveModel
from dove_ext.models.pretrained import weights_digest
from dove_ext.models.vqgan import VQGAN, Stream

BYTES_PER_VALUE = 2  # a token is kept as float16: D values of two bytes


@dataclass(frozen=True)
class Reconstruction:
    """One operating point of a system on a batch.

    Attributes:
        point: a token count as text, or `OWN`.
        images: float32 [B, 3, S, S] in [-1, 1].
        tokens: what each image was given, [B].
        bytes: what that takes to keep, [B].
    """

    point: str
    images: Tensor
    tokens: Tensor
    bytes: Tensor


class System(Protocol):
    """What a table has a row for. `key` is unique in a report, `name` is for people."""

    key: str
    name: str

    @property
    def identity(self) -> Any:
        """Whatever decides its numbers, as JSON."""


class Dove:
    """A DOVE model; its tokens cost D float16 values each."""

    def __init__(self, model: DoveModel, key: str = "dove", query: Tensor | None = None) -> None:
        """Wrap a model.

        Args:
            model: the model, on its device.
            key: "dove", "qdove", ...
            query: ids int64 [Q] or embeddings [Q, hidden] given with every image (Q-DOVE's "null").
        """
        self.model, self.key, self.query = model.eval(), key, query
        self.name = model.config.name
        asked = "" if query is None else str(query.tolist())
        self.identity = [
            weights_digest(model.state_dict()),
            asked,
            str(model.dtype),
            model.device.type,
            model.config.to_json(),
        ]
        self.token_bytes = model.config.token_width * BYTES_PER_VALUE
        self.cost = f"{self.token_bytes} ({model.config.token_width} float16 values)"

    def generate(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """All tokens [B, K, D] and the model's own lengths int32 [B]."""
        return own_lengths(self.model, pixels, self.query)

    @property
    def promise(self) -> float | None:
        """PSNR in dB that this model's stop promises; None if it promises none."""
        return self.model.config.promise

    @torch.no_grad()
    def p_eos(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Of a model that promises a quality: how sure it is that a prefix has it.

        Returns:
            (Tensor, Tensor): float32 [B, K], at n the probability that n tokens are enough; and the PSNR in
            dB that each image needs, float32 [B].
        """
        model = self.model
        generated = model.generate(model.condition(pixels))
        assert self.promise is not None and generated.condition.margin is not None
        return model.generator.p_eos(generated.hidden), self.promise + generated.condition.margin

    def counts(self, counts: Sequence[int]) -> list[int]:
        """Those of `counts` that this model can give."""
        return [n for n in counts if n <= self.model.config.num_tokens]

    def reconstruct(self, pixels: Tensor, counts: Sequence[int]) -> Iterator[Reconstruction]:
        """Every count, then the model's own length."""
        for at in at_lengths(self.model, pixels, counts, self.query):
            yield Reconstruction(at.point, at.images.cpu(), at.lengths, at.lengths * self.token_bytes)

    @torch.no_grad()
    def features(self, pixels: Tensor, counts: Sequence[int]) -> dict[str, Tensor]:
        """Pooled tokens and pooled hidden layers.

        Returns:
            dict: "tokens-N" and "tokens-own" [B, 2 D]: mean and maximum over the first tokens (3.2);
            "code-N" and "code-own" [B, 2 (hidden + 2)]: the same without the tokens' semantic part, where
            they have one beside a linear code; "image-L" and "time-L" [B, hidden]:
            mean of hidden layer L over the image's and the time positions, L from 0 (the stack's input) to
            its number of layers, whose output is normalised and which has no "image" column: nothing reads
            the image positions there, so they are not computed.
        """
        layers: list[Tensor] = []
        stack = self.model.generator.stack
        hooks = [stack.layers[0].register_forward_pre_hook(lambda _, inputs: layers.append(inputs[0]))]
        for module in (*list(stack.layers)[:-1], stack.final_layer_norm):
            hooks.append(module.register_forward_hook(lambda _, __, output: layers.append(output)))
        try:
            tokens, own = self.generate(pixels)
        finally:
            for hook in hooks:
                hook.remove()
        slots = self.model.config.num_tokens
        sequences = {"tokens": tokens.float()}
        if self.model.config.semantic_width:
            sequences["code"] = tokens[..., : -self.model.config.semantic_width].float()
        out = {}
        for kind, sequence in sequences.items():
            out |= {f"{kind}-{n}": mean_and_max(sequence[:, :n]) for n in self.counts(counts)}
            each = zip(sequence, own.tolist(), strict=True)
            out[f"{kind}-{OWN}"] = torch.cat([mean_and_max(image[None, :n]) for image, n in each])
        for number, hidden in enumerate(layers):
            if hidden.shape[1] > slots:  # the last layer runs at the time positions only
                out[f"image-{number}"] = hidden[:, :slots].float().mean(1)
            out[f"time-{number}"] = hidden[:, -slots:].float().mean(1)
        return out


class Vqgan:
    """The fixed-length baseline: the quantised round trip, and latents before quantisation as features (A.1).

    Without a codebook the round trip is not quantised, and its cost is that of float16 latents.
    """

    def __init__(self, vqgan: VQGAN, image_size: int, name: str, key: str = "vqgan") -> None:
        self.vqgan, self.key, self.name = vqgan.eval(), key, name
        self.identity = [
            weights_digest(vqgan.state_dict()),
            next(vqgan.parameters()).device.type,
            vqgan.config.to_json(),
        ]
        self.positions = (image_size // vqgan.config.downsampling) ** 2

    @property
    def token_bytes(self) -> float:
        """Of one position: the index of its code, or its latent's values."""
        if self.vqgan.quantize is None:
            return float(self.vqgan.config.latent_channels * BYTES_PER_VALUE)
        return math.log2(self.vqgan.config.codebook_size) / 8

    @property
    def cost(self) -> str:
        """`token_bytes` for people."""
        if self.vqgan.quantize is None:
            return f"{self.token_bytes:g} ({self.vqgan.config.latent_channels} float16 values)"
        return f"{self.token_bytes:g} (the index of one of {self.vqgan.config.codebook_size} codes)"

    @torch.no_grad()
    def latents(self, pixels: Tensor) -> Tensor:
        """H_v before quantisation [B, P, C]."""
        weight = self.vqgan.post_quant_conv.weight
        return self.vqgan.encode(pixels.to(weight.device, weight.dtype))

    @torch.no_grad()
    def reconstruct(self, pixels: Tensor, counts: Sequence[int]) -> Iterator[Reconstruction]:
        """One point: all positions."""
        latents = self.latents(pixels)
        if self.vqgan.quantize is not None:
            latents = self.vqgan.quantize(latents)[0]
        images = self.vqgan.decode(latents).float().clamp(-1, 1).contiguous().cpu()
        count = torch.full((len(images),), self.positions)
        yield Reconstruction(str(self.positions), images, count, count * self.token_bytes)

    @torch.no_grad()
    def features(self, pixels: Tensor, counts: Sequence[int]) -> dict[str, Tensor]:
        """Pooled latents and encoder levels.

        Returns:
            dict: "latents" [B, 2 C]: mean and maximum over all positions before quantisation; "level-L"
            and "before-quantisation" [B, width]: means over positions, of the encoder's levels from fine to
            coarse and of the latents.
        """
        # On a CPU the encoder takes a batch in parts, one after the other.
        levels: dict[nn.Module, list[Tensor]] = {}

        def keep(module: nn.Module, _: Any, stream: Stream) -> None:
            levels.setdefault(module, []).append(stream.settled().float().mean((2, 3)))

        encoder = self.vqgan.encoder  # none where a linear map of patches encodes alone
        modules = [] if encoder is None else [*encoder.down, encoder.mid]
        hooks = [module.register_forward_hook(keep) for module in modules]
        try:
            latents = self.latents(pixels).float()
        finally:
            for hook in hooks:
                hook.remove()
        out = {"latents": mean_and_max(latents), "before-quantisation": latents.mean(1)}
        means = [torch.cat(levels[module]) for module in modules]
        return out | {f"level-{number}": level for number, level in enumerate(means, 1)}


class Pixels:
    """The picture itself, scaled down to a thumbnail: what a representation has to beat."""

    key, name, side = "pixels", "raw pixels", 16
    identity = "thumbnail 16"

    def features(self, pixels: Tensor, counts: Sequence[int]) -> dict[str, Tensor]:
        """The column "thumbnail" [B, 768]: the mean colour of each of 16 x 16 squares."""
        return {"thumbnail": F.adaptive_avg_pool2d(pixels.float(), self.side).flatten(1)}


class Codec:
    """JPEG or WebP at the highest quality that fits into the bytes of the same number of tokens.

    Where even quality 1 is larger, that is what is shown, with its true size.
    """

    def __init__(self, kind: str, token_bytes: int, settings: dict[str, Any]) -> None:
        self.key, self.name, self.kind = kind.lower(), kind, kind
        self.token_bytes, self.settings = token_bytes, settings
        self.identity = [kind, token_bytes, settings, PIL.__version__]

    @staticmethod
    def jpeg(token_bytes: int) -> Codec:
        """Baseline JPEG with optimised Huffman tables."""
        return Codec("JPEG", token_bytes, {"optimize": True})

    @staticmethod
    def webp(token_bytes: int) -> Codec:
        """Lossy WebP at the default effort."""
        return Codec("WebP", token_bytes, {"method": 4})

    def encode(self, picture: Image.Image, quality: int) -> bytes:
        """A file's content; quality 1..100."""
        stream = io.BytesIO()
        picture.save(stream, self.kind, quality=quality, **self.settings)
        return stream.getvalue()

    def decode(self, data: bytes) -> Tensor:
        """Float32 [3, H, W] in [-1, 1]."""
        with Image.open(io.BytesIO(data)) as picture:
            return pil_to_tensor(picture).float().div(127.5).sub(1)

    def reconstruct(self, pixels: Tensor, counts: Sequence[int]) -> Iterator[Reconstruction]:
        """One point a count."""
        pictures = to_pil((pixels + 1) / 2)
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # the encoders release the interpreter
            fitted = list(pool.map(lambda picture: self.fit_all(picture, counts), pictures))
        for n in counts:
            files = [image[n] for image in fitted]
            images = torch.stack([self.decode(data) for data in files])
            sizes = torch.tensor([len(data) for data in files])
            yield Reconstruction(str(n), images, torch.full((len(files),), n), sizes)

    def fit_all(self, picture: Image.Image, counts: Sequence[int]) -> dict[int, bytes]:
        """The largest file within the bytes of each number of tokens, by bisection; trials are shared."""
        tried: dict[int, bytes] = {}

        def size(quality: int) -> int:
            if quality not in tried:
                tried[quality] = self.encode(picture, quality)
            return len(tried[quality])

        out = {}
        for n in counts:
            low, high = 1, 100  # size grows with quality, up to small ripples
            while low < high:
                middle = (low + high + 1) // 2
                low, high = (middle, high) if size(middle) <= n * self.token_bytes else (low, middle - 1)
            size(low)
            out[n] = tried[low]
        return out


def mean_and_max(x: Tensor) -> Tensor:
    """[B, N, D] to [B, 2 D]: mean and maximum over N."""
    return torch.cat([x.mean(1), x.amax(1)], dim=1)
