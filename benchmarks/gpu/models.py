"""Whole models on the GPU against the CPU: `python -m benchmarks.gpu.models [--dry-run]`.

Lengths, tokens, pictures, CUDA graphs, another stream, and the gradients of a training step with and without
autocast. dove-tiny as it ships, and dove-base with random weights: what the first leaves at zero (its
convolutional encoder adds nothing) the second computes. The CPU's side is float32 in plain PyTorch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate

import dove_ext
from dove_ext import DoveConfig, DoveModel
from dove_train.length_sampling import sample_lengths
from dove_train.stages import TokensPass

from . import device

Build = Callable[[str, torch.dtype], DoveModel]
FIXED = 64
"""Tokens an image where lengths are not what is compared."""
LIMITS = {False: 1e-2, True: 0.3}
"""Of gradients' errors, without and with autocast."""


class Report:
    """Prints a line for each comparison and counts what is off."""

    def __init__(self) -> None:
        self.lines, self.failed = 0, 0

    def say(self, what: str, good: bool, *figures: object) -> None:
        """One comparison."""
        self.lines, self.failed = self.lines + 1, self.failed + (not good)
        print("ok    " if good else "FAILED", what, *figures, flush=True)

    def near(self, what: str, actual: Tensor, expected: Tensor, limit: float) -> None:
        """Tensors whose difference is at most `limit` of the second's norm; NaN is never near."""
        exact = expected.double().cpu()
        error = ((actual.double().cpu() - exact).norm() / exact.norm()).item()
        self.say(what, error <= limit, f"{error:.2e} of {limit:.0e}")


def tiny(where: str, dtype: torch.dtype) -> DoveModel:
    """dove-tiny as shipped."""
    return DoveModel.from_pretrained("dove-tiny", device=where, dtype=dtype)


def random_weights(config: DoveConfig) -> Build:
    """Models of a shape with the same random weights each time."""

    def build(where: str, dtype: torch.dtype) -> DoveModel:
        torch.manual_seed(0)
        return DoveModel(config).eval().to(where, dtype)

    return build


def pictures(count: int, size: int) -> Tensor:
    """Smooth random pictures, float32 [count, 3, size, size] in [0, 1]."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 24, 24, generator=random)
    return interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)


@contextmanager
def plain_ops(wanted: bool = True) -> Iterator[None]:
    """This package's ops in plain PyTorch."""
    previous = dove_ext.set_backend("torch" if wanted else "auto")
    try:
        yield
    finally:
        dove_ext.set_backend(previous)


def inference(report: Report, name: str, build: Build, count: int) -> None:
    """Lengths, tokens and pictures, in float32 and bfloat16."""
    reference = build("cpu", torch.float32)
    images = pictures(count, reference.config.image_size)
    fixed = min(FIXED, reference.config.num_tokens)
    with plain_ops():
        lengths = reference.encode(images).lengths.tolist()
        tokens = reference.encode(images, num_tokens=fixed)
        decoded = reference.decode(tokens)
    model = build(device.name, torch.float32)
    found = model.encode(images).lengths.tolist()
    report.say(f"{name}: lengths, fp32", found == lengths, found, lengths)
    ours = model.encode(images, num_tokens=fixed)
    report.near(f"{name}: tokens, fp32", ours.tokens, tokens.tokens, 1e-3)
    report.near(f"{name}: pictures, fp32", model.decode(ours), decoded, 1e-3)
    low = build(device.name, torch.bfloat16)
    report.near(f"{name}: pictures, bf16", low.decode(low.encode(images, num_tokens=fixed)), decoded, 5e-2)
    first, second = (low.encode(images) for _ in range(2))
    report.say(f"{name}: the same tokens twice", torch.equal(first.tokens, second.tokens))
    if device.name == "cuda":
        on_a_gpu(report, name, low, images)


def on_a_gpu(report: Report, name: str, model: DoveModel, images: Tensor) -> None:
    """Graphs of several sizes, one of them filled up, against blocks; and a stream of its own."""
    for count in (1, 3, len(images)):
        graph, blocks = (
            model.encode(images[:count], cuda_graph=chosen, batch_size=4) for chosen in (True, False)
        )
        pair = graph.lengths.tolist(), blocks.lengths.tolist()
        report.say(f"{name}: graph of {count}", pair[0] == pair[1], *pair)
        if pair[0] == pair[1]:
            report.near(f"{name}: tokens of a graph of {count}", graph.tokens, blocks.tokens, 2e-2)
    stream, there = torch.cuda.Stream(), images.cuda()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        other = model.encode(there)
    stream.synchronize()
    report.say(f"{name}: another stream", torch.equal(other.tokens, model.encode(there).tokens))


def gradients(build: Build, count: int, where: str, *, autocast: bool, plain: bool) -> dict[str, Tensor]:
    """Of all weights after one step's loss, as `dove train` computes it."""
    model = build(where, torch.float32).train()
    config = model.config
    pixels = (pictures(count, config.image_size) * 2 - 1).to(where)
    lengths = sample_lengths(0, 0, count, config.num_tokens, full_share=0.2).to(where)
    with plain_ops(plain):
        with torch.autocast(where, torch.bfloat16, enabled=autocast):
            out = TokensPass(model)(pixels, lengths)
            assert out.reconstruction is not None and out.p_eos is not None
            loss = (out.reconstruction.float() - pixels).square().mean() + 0.05 * out.p_eos.mean()
        loss.backward()
    named = model.named_parameters()
    return {name: p.grad.detach().float().cpu() for name, p in named if p.grad is not None}


def training(report: Report, name: str, build: Build, count: int) -> None:
    """Every weight's gradient, by the norm of its error.

    Some are zero but for rounding (a bias before a norm, that of an attention's keys): the norm that an error
    is compared with is at least a thousandth of the largest.
    """
    exact = gradients(build, count, "cpu", autocast=False, plain=True)
    least = 1e-3 * max(grad.norm().item() for grad in exact.values())
    for autocast, limit in LIMITS.items():
        ours = gradients(build, count, device.name, autocast=autocast, plain=False)
        errors = {
            key: (ours[key] - grad).norm().item() / max(grad.norm().item(), least)
            for key, grad in exact.items()
        }
        worst = max(errors, key=lambda key: errors[key] if errors[key] == errors[key] else float("inf"))
        report.say(
            f"{name}: gradients{', autocast' if autocast else ''}", errors[worst] <= limit,
            f"{len(errors)} tensors, largest error {errors[worst]:.2e} of {limit:.0e}, of {worst}",
        )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, small models")
    device.name = "cpu" if parser.parse_args(arguments).dry_run else "cuda"
    if device.name == "cuda":
        device.require_gpu()
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    report, base = Report(), random_weights(device.config())
    other = tiny if device.name == "cuda" else random_weights(replace(device.config(), image_size=24))
    inference(report, "dove-tiny", other, 6)
    training(report, "dove-tiny", other, 4)
    inference(report, "dove-base", base, 2)
    training(report, "dove-base", base, 2)
    print(f"{report.lines} comparisons, {report.failed} failures")
    return int(report.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
