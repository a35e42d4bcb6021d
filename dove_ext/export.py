"""Models as graphs that run without this package: `torch.export` programs, ONNX, AOTInductor packages.

Graphs hold plain PyTorch operators, so whoever runs them needs none of our Python. What they lose: compiled
kernels, and the early end of the generator (all positions that are allowed run for every image).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from dove_ext._info import __version__
from dove_ext.atomic import make_writable_folder
from dove_ext.errors import ExportError
from dove_ext.models.dove import DoveModel
from dove_ext.models.query import Query
from dove_ext.ops.backend import set_backend
from dove_ext.tokens.lengths import LengthRule

Format = Literal["torch-export", "onnx", "aoti"]
SUFFIXES: dict[str, str] = {"torch-export": ".pt2", "onnx": ".onnx", "aoti": ".aoti.pt2"}
ABOUT = "export.json"
BATCH = 2  # of the example; the batch of a graph is free


class Encoder(nn.Module):
    """Pixels to padded tokens and lengths (Eq. 1 and 2).

    Args:
        model: whose weights it holds.
        rule: how lengths are chosen; budgets and quality targets are not for a graph.
    """

    def __init__(self, model: DoveModel, rule: LengthRule) -> None:
        super().__init__()
        self.model, self.rule = model, rule
        null: Tensor | None = None
        if model.config.query_vocab_size and model.relevance is None:
            asked = model.queries(None, 1)
            assert asked is not None and asked.lengths is None
            null = asked.values
        self.null: Tensor | None
        self.register_buffer("null", null, persistent=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, N, D], of which the first `lengths` int32 [B] are the image's.

        No more than N = `num_tokens`, `max_tokens` or K positions run.

        Args:
            pixels: float32 [B, 3, S, S] in [0, 1].
        """
        model, rule = self.model, self.rule
        query = None if self.null is None else Query(self.null.expand(pixels.shape[0], -1))
        condition = model.condition((2 * pixels - 1).to(model.dtype), query)
        generated = model.generate(condition, rule.most(model.config.num_tokens), sample=False)
        if rule.num_tokens is not None:
            lengths = torch.full_like(generated.tokens[:, 0, 0], rule.num_tokens, dtype=torch.int32)
        else:
            lengths = model.generator.lengths(generated.hidden, rule.eos_threshold, rule.least)
        return generated.tokens, lengths


class PackedEncoder(Encoder):
    """Pixels to packed tokens: no row of padding leaves the graph."""

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [T, D] of all images, one after the other, and `cu_seqlens` int32 [B + 1] from 0 to T."""
        tokens, lengths = super().forward(pixels)
        kept = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        ends = lengths.cumsum(0, dtype=torch.int32)
        return tokens[kept], torch.cat([torch.zeros_like(ends[:1]), ends])


class Decoder(nn.Module):
    """Padded tokens and lengths to pixels.

    Args:
        model: whose weights it holds.
    """

    def __init__(self, model: DoveModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Pixels float32 [B, 3, S, S] in [0, 1].

        Args:
            tokens: [B, N, D] of the model's dtype, N as the encoder has it; what stands behind a length is
                ignored.
            lengths: int32 [B], 1..N.
        """
        behind = self.model.config.num_tokens - tokens.shape[1]  # the model has a place for each of K
        tokens = nn.functional.pad(tokens, (0, 0, 0, behind))
        return (self.model.render(tokens, lengths).float() / 2 + 0.5).clamp(0.0, 1.0)


PARTS: dict[str, type[Encoder] | type[Decoder]] = {
    "encoder": Encoder,
    "packed_encoder": PackedEncoder,
    "decoder": Decoder,
}
NAMES = {
    "encoder": (("pixels",), ("tokens", "lengths")),
    "packed_encoder": (("pixels",), ("tokens", "cu_seqlens")),
    "decoder": (("tokens", "lengths"), ("pixels",)),
}
"""Of a part's inputs and outputs."""


def export(
    model: DoveModel,
    to: Format,
    folder: str | os.PathLike[str],
    *,
    parts: Sequence[str] = tuple(PARTS),
    num_tokens: int | None = None,
    min_tokens: int | None = None,
    max_tokens: int | None = None,
    eos_threshold: float | None = None,
) -> list[Path]:
    """Write a model's graphs, and `export.json`, which says what goes in and comes out.

    Of any batch; the rest is the model's, but K where `num_tokens` or `max_tokens` is less. Lengths are
    chosen in the graph, as `DoveModel.encode` does; models that read queries are asked for the whole picture.

    Args:
        model: in the dtype that the graphs are to have; on the CPU.
        to: "torch-export" (`torch.export.load`), "onnx" (opset 18), or "aoti" (compiled by AOTInductor for
            this kind of machine: `torch._inductor.aoti_load_package`, or C++).
        folder: made if it is missing.
        parts: which of "encoder" (padded tokens and lengths), "packed_encoder" (tokens and `cu_seqlens`) and
            "decoder".
        num_tokens: exactly this many tokens, 1..K, decided now.
        min_tokens: likewise, at least.
        max_tokens: likewise, at most.
        eos_threshold: likewise, see `DoveModel.encode`.

    Returns:
        list[Path]: the graphs' files, in the order of `parts`.

    Raises:
        ValueError: if the format or a part is unknown, a length out of range, or the model for ONNX in
            bfloat16, which operators of opset 18 do not take.
        ExportError: if a package, or a compiler, that the format needs is missing.
    """
    if to not in SUFFIXES:
        raise ValueError(f"there is no format {to!r}; choose one of {', '.join(SUFFIXES)}")
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"there is no part {part!r}; choose among {', '.join(PARTS)}")
    if model.device.type != "cpu":
        raise ValueError(f"the model is on {str(model.device)!r}; move it to the CPU")
    if to == "onnx" and model.dtype == torch.bfloat16:
        raise ValueError(
            "ONNX's Conv and Einsum take no bfloat16 before opsets 22 and 28, and these graphs are of 18; "
            "export float32, or choose torch-export or aoti"
        )
    rule = LengthRule(num_tokens, min_tokens, max_tokens, eos_threshold)
    rule.check(model.config.num_tokens, BATCH)
    if to == "onnx":
        _require_onnx()
    elif to == "aoti":
        _require_compiler()
    folder = make_writable_folder(Path(folder))
    training = model.training
    model.eval()
    try:
        _export(model, folder, parts, to, rule)
    finally:
        model.train(training)
    return [folder / (part + SUFFIXES[to]) for part in parts]


def _export(model: DoveModel, folder: Path, parts: Sequence[str], to: Format, rule: LengthRule) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        about: dict[str, Any] = {
            "dove_ext": __version__,
            "model": model.config.name,
            "format": to,
            "parts": {},
        }
        for part in parts:
            program = _traced(model, part, rule)
            about["parts"][part] = _describe(model, part, SUFFIXES[to], rule)
            _write(program, part, to, Path(place) / (part + SUFFIXES[to]), about["parts"][part])
        (Path(place) / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        for file in sorted(Path(place).iterdir()):
            file.replace(folder / file.name)


def _traced(model: DoveModel, part: str, rule: LengthRule) -> ExportedProgram:
    config = model.config
    batch = Dim("batch", min=1)
    inputs: tuple[Tensor, ...]
    if part == "decoder":
        module: nn.Module = Decoder(model)
        most = rule.most(config.num_tokens)
        tokens = torch.zeros(BATCH, most, config.token_width, dtype=model.dtype)
        inputs = tokens, torch.full((BATCH,), most, dtype=torch.int32)
    else:
        module = (Encoder if part == "encoder" else PackedEncoder)(model, rule)
        inputs = (torch.rand(BATCH, 3, config.image_size, config.image_size),)
    # The batch is counted, not looked up: nothing of the example's size may stay in the graph.
    with _plain(), torch.no_grad():
        return torch.export.export(
            module.eval(), inputs, dynamic_shapes=tuple({0: batch} for _ in inputs), strict=False
        )


@contextlib.contextmanager
def _plain() -> Iterator[None]:
    """Plain PyTorch operators, and an exporter that keeps to itself."""
    before = set_backend("torch")
    log = logging.getLogger("torch.onnx")
    level = log.level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            log.setLevel(logging.ERROR)
            yield
    finally:
        set_backend(before)
        log.setLevel(level)


def _write(program: ExportedProgram, part: str, to: str, path: Path, described: dict[str, Any]) -> None:
    inputs, outputs = NAMES[part]
    if to == "torch-export":
        with _plain():
            torch.export.save(program, path)
    elif to == "onnx":
        with _plain(), contextlib.redirect_stdout(None):
            made = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=inputs, output_names=outputs,
                opset_version=18,
            )  # fmt: skip
            assert made is not None
            _name_sizes(made.model.graph, described)
            made.save(path, external_data=False)
    else:
        from torch._inductor import aoti_compile_and_package

        with _plain():
            aoti_compile_and_package(program, package_path=str(path))


def _name_sizes(graph: Any, described: dict[str, Any]) -> None:
    """Call an ONNX graph's free sizes what `export.json` calls them."""
    from onnx_ir import Shape

    for value, (_, sizes, *_) in zip(
        (*graph.inputs, *graph.outputs),
        (*described["inputs"].values(), *described["outputs"].values()),
        strict=True,
    ):
        value.shape = Shape(sizes)


def _describe(model: DoveModel, part: str, suffix: str, rule: LengthRule) -> dict[str, Any]:
    config, dtype = model.config, str(model.dtype).removeprefix("torch.")
    shapes: dict[str, Any] = {
        "pixels": ["float32", ["batch", 3, config.image_size, config.image_size], "0 to 1"],
        "tokens": [dtype, ["batch", rule.most(config.num_tokens), config.token_width]],
        "lengths": ["int32", ["batch"]],
        "cu_seqlens": ["int32", ["batch + 1"]],
    }
    if part == "packed_encoder":
        shapes["tokens"] = [dtype, ["total", config.token_width]]
    inputs, outputs = NAMES[part]
    return {
        "file": part + suffix,
        "inputs": {name: shapes[name] for name in inputs},
        "outputs": {name: shapes[name] for name in outputs},
    }


def _require_onnx() -> None:
    try:
        import onnxscript  # noqa: F401 (the exporter needs it)
    except ImportError as error:
        raise ExportError("ONNX needs: pip install 'dove-ext[export]'") from error


def _require_compiler() -> None:
    """What AOTInductor looks for only when it has traced the model, and then says over a page."""
    from torch._inductor import config
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except (RuntimeError, OSError) as error:
        why = f"AOTInductor needs a C++ compiler, and {config.cpp.cxx[-1]!r} does not run"
        raise ExportError(f"{why}; install g++, or name one in CXX") from error
