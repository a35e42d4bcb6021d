"""Whole encodes of 8-bit pictures on the host against VQGAN-256 and ALIT: `python -m benchmarks.gpu.encode`.

dove-base in bfloat16, which ends at its own lengths (`benchmarks.tokenizers.stops`), as one CUDA graph and in
blocks of positions. The peers are in bfloat16 and channels-last, which is what makes them fastest: eager, and
as a CUDA graph; with --compiled, instead of all these, VQGAN-256 under torch.compile, which takes its time. A
call begins with uint8 pixels on the host and ends when the device is done. The clock is the host's, since our
encode ends with the lengths there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dove_ext import DoveModel

from .. import timing
from ..record import Record
from ..tokenizers import build
from . import device

TOKENS = 128
"""Of ALIT; our own lengths have a mean of 121.5, the paper's average."""

Call = Callable[[], Any]


class Models(NamedTuple):
    """Ours and the peers, with the side of the pictures that each takes."""

    ours: DoveModel
    vqgan: Any
    alit: Any
    sizes: tuple[int, int, int] = (256, 256, 256)


def dtype_name() -> str:
    """Of weights and activations; a dry run's is what any CPU computes quickly."""
    return "bf16" if device.name == "cuda" else "fp32"


def models() -> Models:
    """On the device; in a dry run small ones."""
    where, dtype = torch.device(device.name), device.DTYPES[dtype_name()]
    if device.name == "cuda":
        peers = (build.peer(kind, "", dtype, where) for kind in ("vqgan", "alit"))
        return Models(build.dove_model("dove-base", dtype, where, 256, build.OWN_LENGTHS), *peers)
    from ..tokenizers.peers.alit import ALIT
    from ..tokenizers.peers.maskgit_vqgan import MaskGitVQGAN
    from ..tokenizers.peers.vqgan import VQGAN

    config, base = device.config(), MaskGitVQGAN(channels=32, latent_width=32, codebook_size=16)
    small: list[nn.Module] = [DoveModel(config), VQGAN(16, channels=32), ALIT(64, 1, 2, base=base)]
    ours, *peers = (model.to(dtype).eval() for model in small)
    return Models(ours, *peers, sizes=(config.image_size, 32, 256))  # type: ignore[arg-type]


def prepared(pixels: Tensor, *, signed: bool) -> Tensor:
    """What a peer is given, on the device: [-1, 1] or [0, 1] in its dtype, channels-last."""
    unit = pixels.to(device.name).to(device.DTYPES[dtype_name()]) / 255
    return (unit * 2 - 1 if signed else unit).contiguous(memory_format=torch.channels_last)


def eager(encode: Callable[[Tensor], Any], pixels: Tensor, *, signed: bool) -> Call:
    """A peer as its users run it."""

    def call() -> Any:
        return encode(prepared(pixels, signed=signed))

    return call


def as_graph(encode: Callable[[Tensor], Any], pixels: Tensor, *, signed: bool) -> Call:
    """A peer as a CUDA graph, preparation included: only the copy to the device stays outside."""
    if device.name != "cuda":
        return eager(encode, pixels, signed=signed)
    held = pixels.to(device.name)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # library handles and choice of kernels belong before the capture
        for _ in range(2):
            encode(prepared(held, signed=signed))
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = encode(prepared(held, signed=signed))

    def call() -> Any:
        held.copy_(pixels)
        graph.replay()
        return result

    return call


def candidates(made: Models, batch: int, *, compiled: bool) -> dict[str, Callable[[], Call]]:
    """Name -> what makes a call ready."""
    ours, vqgan, alit = (build.pictures(batch, size) for size in made.sizes)

    def encode(graph: bool) -> Call:
        return lambda: made.ours.encode(ours, batch_size=batch, cuda_graph=graph and device.name == "cuda")

    def allocate(pixels: Tensor) -> Tensor:
        codes: Tensor = made.alit.encode(pixels, TOKENS)
        return codes

    found: dict[str, Callable[[], Call]] = {"ours": lambda: encode(True)}
    if compiled:
        function = device.compiled(made.vqgan.encode)
        return found | {"VQGAN-256 compiled": lambda: eager(function, vqgan, signed=True)}
    return found | {
        "ours, blocks": lambda: encode(False),
        "VQGAN-256 eager": lambda: eager(made.vqgan.encode, vqgan, signed=True),
        "VQGAN-256 graph": lambda: as_graph(made.vqgan.encode, vqgan, signed=True),
        f"ALIT-{TOKENS} eager": lambda: eager(allocate, alit, signed=False),
        f"ALIT-{TOKENS} graph": lambda: as_graph(allocate, alit, signed=False),
    }


@torch.no_grad()
def row(record: Record, options: Any, made: Models, batch: int) -> None:
    """All candidates in turns; a peer that fails is left out and named."""
    device.new_row()
    calls: dict[str, Call] = {}
    missing: dict[str, str] = {}

    def until_done(call: Call) -> Call:
        def whole() -> Any:
            result = call()
            device.synchronize()
            return result

        return whole

    for name, make in candidates(made, batch, compiled=options.compiled).items():
        try:
            call = until_done(make())
            call()
            calls[name] = call
        except Exception as error:
            if name.startswith("ours"):
                raise
            missing[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
    lengths = calls["ours"]().lengths.tolist()
    rounds, warmup = (1, 0) if options.dry_run else (5, 2)
    seconds = options.seconds * len(calls)
    times = timing.interleave(calls, seconds=seconds, min_rounds=rounds, warmup=warmup)
    setting = {
        "what": "encode",
        "batch": batch,
        "dtype": dtype_name(),
        "mean_length": round(sum(lengths) / batch, 1),
    }
    result = timing.compare(times, "ours")
    record.add(
        f"encode, B={batch}", setting, {**result, "compiled": device.compiled_graphs(), "missing": missing}
    )


def main(arguments: list[str] | None = None) -> int:
    parser = device.arguments(__doc__ or "")
    parser.add_argument("--compiled", action="store_true", help="against VQGAN-256 under torch.compile alone")
    options = parser.parse_args(arguments)
    record = device.begin(options, "encode", arguments)
    made = models()
    for batch in device.batches(options, 1, 8, 64):
        row(record, options, made, batch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
