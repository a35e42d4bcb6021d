"""How each kind of system is built, as stages to be timed.

All have random weights, which cost what trained ones cost, or those of `WEIGHTS`; dove-tiny has its own. A
builder returns a system's stages as functions that prepare one call: what is not measured is not built.
"""

from __future__ import annotations

import functools
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dove_ext
from dove_ext import DoveConfig, DoveModel, DoveTokens
from dove_ext.images import prepare_images
from dove_ext.images.files import to_pil

Call = Callable[[], Any]
Stages = dict[str, Callable[[], Call]]

OWN_LENGTHS = (122, 24, 52, 80, 108, 160, 188, 238)
"""Where dove-base is made to stop on the eight pictures: spread around the paper's average, 121.6, and the
first, which is the one of batch 1, at that average."""

RELEASED, EAGER, COMPILED = "eager fp32, as released", "eager bf16", "compiled bf16"
OURS, OURS_FP32 = "dove_ext bf16", "dove_ext fp32"
GENERATOR = "generator + EOS"
FIRST_WORD = "file to first word"

WEIGHTS: dict[str, str] = {}
"""Checkpoints to be used instead of random weights: "dove-base", "vqgan", "alit", "titok-S-128", ..."""


@dataclass(frozen=True)
class System:
    """One way to run one tokenizer.

    Attributes:
        name: what is run, with the number of tokens where it can be chosen.
        way: dtype, and eager, compiled or this package.
        build: makes the stages for a number of images and a device.
        tokens: tokens an image; None: as many as the model finds right.
        batches: batch sizes at which encode and decode are measured.
        slow: a call takes minutes, so there is no warm-up call and there are few rounds.
        quick: part of `--quick`.
        size: side of the images in pixels.
    """

    name: str
    way: str
    build: Callable[[System, int, torch.device], Stages]
    tokens: int | None
    batches: tuple[int, ...] = (1, 8)
    slow: bool = False
    quick: bool = False
    size: int = 256

    @property
    def dtype(self) -> torch.dtype:
        """What weights and activations are held in."""
        return torch.float32 if "fp32" in self.way else torch.bfloat16

    @property
    def ours(self) -> bool:
        """Whether this package runs it; then a failure is an error and not a gap in the table."""
        return self.way.startswith("dove_ext")


def pictures(batch: int, size: int = 256) -> Tensor:
    """Eight random pictures from very smooth to noise, over and over: uint8 [batch, 3, size, size]."""
    random = torch.Generator().manual_seed(0)
    each = [
        torch.nn.functional.interpolate(
            torch.rand(1, 3, detail, detail, generator=random), size=(size, size), mode="bicubic"
        )
        for detail in (4, 8, 16, 24, 32, 64, 96, 128)
    ]
    return (torch.cat(each).clamp(0, 1) * 255).byte().repeat(-(-batch // 8), 1, 1, 1)[:batch]


def _pixels(system: System, batch: int, device: torch.device, signed: bool) -> Tensor:
    unit = pictures(batch, system.size).to(device).float() / 255
    return (unit * 2 - 1 if signed else unit).to(system.dtype)


def _call(system: System, device: torch.device, function: Callable[..., Any], *arguments: Any) -> Call:
    """One call without gradients that returns when the device is done."""
    if system.way == COMPILED:
        torch._dynamo.config.recompile_limit = 64  # one shape a batch size, token count and stage
        function = torch.compile(function, dynamic=False)

    def call() -> Any:
        with torch.no_grad():
            result = function(*arguments)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return result

    return call


@functools.cache
def peer(kind: str, name: str, dtype: torch.dtype, device: torch.device) -> Any:
    """A peer's model. In bfloat16 it is in channels-last, which is what makes it fastest."""
    kinds = {"vqgan": "VQGAN", "alit": "ALIT", "titok": "TiTok"}
    make = getattr(import_module(f".peers.{kind}", __package__), kinds[kind])
    arguments = [name] if name else []
    if path := WEIGHTS.get("-".join([kind, *arguments])):
        model = make.from_checkpoint(path, *arguments)
    else:
        torch.manual_seed(0)
        with device:
            model = make(*arguments)
    model = model.to(device, dtype).eval()
    return model if dtype == torch.float32 else model.to(memory_format=torch.channels_last)


@functools.cache
def files(batch: int, size: int) -> list[Path]:
    """`pictures` as JPEG files, which are there until the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="dove-bench-")
    weakref.finalize(files, folder.cleanup)
    paths = [Path(folder.name, f"{i}.jpg") for i in range(batch)]
    for picture, path in zip(to_pil(pictures(batch, size)), paths, strict=True):
        picture.save(path, quality=95)
    return paths


@functools.cache
def language_model(dtype: torch.dtype, device: torch.device) -> Any:
    """A Llama behind a connector, with random weights."""
    from .llm import SHAPES, Prefill

    torch.manual_seed(0)
    with device:
        model = Prefill(512, SHAPES["cuda" if device.type == "cuda" else "cpu"])
    return model.to(dtype).eval()


def first_word(
    system: System, batch: int, device: torch.device, encode: Callable[[list[Path]], Any]
) -> Callable[[], Call]:
    """From pictures' files to the language model's first word, all that lies between included."""

    def prepare() -> Call:
        paths, reader = files(batch, system.size), language_model(system.dtype, device)
        return _call(replace(system, way=EAGER), device, lambda: reader.first_words(encode(paths)))

    return prepare


def _read(system: System, paths: list[Path], device: torch.device, signed: bool) -> Tensor:
    signed_pixels = prepare_images(paths, system.size).to(device)
    return (signed_pixels if signed else (signed_pixels + 1) / 2).to(system.dtype)


def vqgan(system: System, batch: int, device: torch.device) -> Stages:
    """VQGAN-256."""
    model = peer("vqgan", "", system.dtype, device)
    layout = torch.contiguous_format if system.way == RELEASED else torch.channels_last
    return {
        "encode": lambda: _call(
            system, device, model.encode,
            _pixels(system, batch, device, signed=True).contiguous(memory_format=layout),
        ),
        "decode": lambda: _call(
            system, device, model.decode, torch.randint(8192, (batch, 256), device=device)
        ),
        FIRST_WORD: first_word(
            system, batch, device,
            lambda paths: model.encode(
                _read(system, paths, device, signed=True).contiguous(memory_format=layout)
            ),
        ),
    }  # fmt: skip


def alit(system: System, batch: int, device: torch.device) -> Stages:
    """ALIT at a fixed count, searching its threshold, or as released."""
    model = peer("alit", "", system.dtype, device)
    pixels = _pixels(system, batch, device, signed=False)
    codes = torch.randint(4096, (batch, system.tokens or 256), device=device)
    stages: Stages = {
        "encode": lambda: _call(system, device, model.encode, pixels, system.tokens),
        FIRST_WORD: first_word(
            system, batch, device,
            lambda paths: model.encode(_read(system, paths, device, signed=False), system.tokens),
        ),
    }  # fmt: skip
    if "threshold" in system.name:  # random weights reach no loss: it ends at once or never
        loss = float("inf") if system.tokens == 32 else 0.0
        return {"encode": lambda: _call(system, device, model.encode_until, pixels, loss)}
    if system.tokens is None:
        return {"encode": lambda: _call(system, device, model.encode_as_released, pixels)}

    def embedded() -> Call:
        with torch.no_grad():
            x = model.embed(pixels)
        return _call(system, device, model.allocate, x, system.tokens)

    return stages | {
        "base encoder": lambda: _call(system, device, model.embed, pixels),
        "roll-outs": embedded,
        "decode": lambda: _call(system, device, model.decode, codes),
        "detokenize": lambda: _call(system, device, model.detokenize, codes),
    }


def titok(system: System, batch: int, device: torch.device) -> Stages:
    """TiTok; its name holds its size."""
    model = peer("titok", system.name.removeprefix("TiTok "), system.dtype, device)
    codes = torch.randint(4096, (batch, system.tokens or 0), device=device)
    return {
        "encode": lambda: _call(
            system, device, model.encode, _pixels(system, batch, device, signed=False)
        ),
        "decode": lambda: _call(system, device, model.decode, codes),
        "detokenize": lambda: _call(system, device, model.detokenize, codes),
    }  # fmt: skip


@functools.cache
def dove_model(
    name: str, dtype: torch.dtype, device: torch.device, size: int, stops: tuple[int, ...]
) -> DoveModel:
    """dove-tiny as shipped, or dove-base; with `stops` its EOS row is fitted to end there."""
    from .stops import fit_eos

    if name == "dove-tiny" or (name in WEIGHTS and size == 256):
        model = DoveModel.from_pretrained(WEIGHTS.get(name, name), device=device, dtype=dtype)
    else:
        torch.manual_seed(0)
        with device:
            model = DoveModel(DoveConfig(image_size=size))
        model = model.to(device, dtype).eval()
    if stops:
        with torch.no_grad():
            pixels = pictures(8, size).to(device, dtype) / 127.5 - 1
            fit_eos(model, model.vqgan.encode(pixels), stops)
    return model


def dove(system: System, batch: int, device: torch.device) -> Stages:
    """This package's models: through `encode` and `decode`, and stage by stage."""
    name, count = system.name.rsplit("-", 1)[0], system.tokens
    stops = (count,) * 8 if count else OWN_LENGTHS
    named = functools.partial(dove_model, name, system.dtype, device, system.size)
    model = functools.partial(named, ())
    trained = name == "dove-tiny" or name in WEIGHTS
    finds_stop = model if (trained and not count) or count == 256 else functools.partial(named, stops)
    whole = model if count else finds_stop
    chosen = {"num_tokens": count} if count else {}
    images = pictures(batch, system.size).to(device)
    pixels = _pixels(system, batch, device, signed=True)
    lengths = torch.tensor([stops[i % 8] for i in range(batch)], dtype=torch.int32, device=device)

    def call(function: Callable[..., Any], *arguments: Any) -> Call:
        return _call(system, device, function, *arguments)

    def generator() -> Call:
        """`encode` behind the VQGAN encoder, whose result is given."""
        m = finds_stop()
        with torch.no_grad():
            latents = m.vqgan.encode(pixels)
        return call(_behind_the_encoder, m, images, latents)

    def tokens() -> DoveTokens:
        total = int(lengths.sum())
        values = torch.randn(total, model().config.token_width, dtype=system.dtype, device=device)
        cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        return DoveTokens(values, cu_seqlens, model().config.num_tokens, model=name)

    def padded() -> Tensor:
        config = model().config
        return torch.randn(batch, config.num_tokens, config.token_width, dtype=system.dtype, device=device)

    latents = (batch, model().config.num_tokens, model().config.vqgan.latent_channels)
    return {
        "encode": lambda: call(lambda: whole().encode(images, **chosen)),
        FIRST_WORD: first_word(system, batch, device, lambda paths: whole().encode(paths, **chosen)),
        "VQGAN encoder": lambda: call(model().vqgan.encode, pixels),
        GENERATOR: generator,
        "decode": lambda: call(model().decode, tokens()),
        "token decoder": lambda: call(model().token_decoder, padded(), lengths),
        "VQGAN decoder": lambda: call(
            model().vqgan.decode, torch.randn(latents, dtype=system.dtype, device=device)
        ),
    }


def _behind_the_encoder(model: DoveModel, images: Tensor, latents: Tensor) -> DoveTokens:
    """`model.encode` at the model's own lengths, with the VQGAN encoder's result already there."""
    parts = iter(latents.split(32))
    model.vqgan.encode = lambda _: next(parts)  # type: ignore[method-assign]
    try:
        tokens = model.encode(images, batch_size=32, cuda_graph=False)  # a recording holds the encoder
    finally:
        del model.vqgan.encode
    if next(parts, None) is not None:
        raise RuntimeError("encode did not ask the VQGAN encoder for every batch of 32 images")
    return tokens


def plain(system: System, batch: int, device: torch.device) -> Stages:
    """dove-base in PyTorch's own ops: all positions at once, the whole batch at once, logits in memory."""
    from .eager import Eager

    model = dove_model("dove-base", system.dtype, device, 256, ())
    eager, pixels = Eager(model), _pixels(system, batch, device, signed=True)

    def encode() -> Any:
        return eager(model.vqgan.encode(pixels))

    def with_torch_ops(call: Call) -> Any:
        previous = dove_ext.set_backend("torch")
        try:
            return call()
        finally:
            dove_ext.set_backend(previous)

    def whole() -> Call:
        inner = _call(system, device, encode)
        return lambda: with_torch_ops(inner)

    latents = torch.randn(batch, 256, 256, dtype=system.dtype, device=device)
    return {"encode": whole, GENERATOR: lambda: _call(system, device, eager, latents)}


def onnx(system: System, batch: int, device: torch.device) -> Stages:
    """dove-base exported to ONNX, at a fixed count."""
    from .onnx_runtime import session

    if device.type != "cpu":
        return {}
    pixels = _pixels(system, batch, device, signed=True)
    model = dove_model("dove-base", system.dtype, device, 256, ())
    return {"encode": lambda: session(model, pixels, system.tokens or 256)}
