"""What a graph of `dove export` loses: encode at own lengths, the library against its exported graphs.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.exported [--formats onnx aoti] [--json PATH]

In turns, on a CPU, float32: `DoveModel.encode` (compiled kernels, which stop behind the last EOS), and the
packed encoder as a torch.export program, compiled by AOTInductor, and in ONNX Runtime. Pictures are the
photographs of examples/, repeated. A format whose packages are missing is left out, and it is said.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dove_ext
from dove_ext import DoveModel
from dove_ext.errors import ExportError
from dove_ext.export import SUFFIXES, Format, export
from dove_ext.memory import keep_freed_memory

from . import timing
from .record import Record, arguments

PHOTOS = Path(__file__).resolve().parents[1] / "examples" / "photos"
OURS = "library"


def runner(to: Format, file: Path) -> Callable[[Tensor], Any]:
    """One call of a graph."""
    if to == "torch-export":
        program: Any = torch.export.load(file).module()
        return program
    if to == "aoti":
        package: Any = torch._inductor.aoti_load_package(str(file))
        return package
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"pixels": pixels.numpy()})


def main(options: list[str] | None = None) -> int:
    parser = arguments(__doc__ or "", seconds=20.0)
    parser.add_argument("--model", default="dove-tiny", help="(default: %(default)s)")
    parser.add_argument("--formats", nargs="+", choices=list(SUFFIXES), default=list(SUFFIXES))
    args = parser.parse_args(options)
    if args.threads:
        torch.set_num_threads(args.threads)
    keep_freed_memory()
    model = DoveModel.from_pretrained(args.model).eval()
    photos = dove_ext.prepare_images(sorted(PHOTOS.glob("*.jpg")), model.config.image_size) / 2 + 0.5
    record, missing = Record("exported", args.json, options), {}
    graphs: dict[str, Callable[[Tensor], Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for to in args.formats:
            try:
                (file,) = export(model, to, Path(folder) / to, parts=("packed_encoder",))
                graphs[to] = runner(to, file)
            except (ExportError, ImportError) as error:
                missing[to] = str(error)
        for batch in args.batches or ((1,) if args.quick else (1, 8)):
            pixels = photos[torch.arange(batch) % len(photos)].contiguous()
            calls: dict[str, Callable[[], Any]] = {OURS: lambda pixels=pixels: model.encode(pixels)}
            calls |= {to: lambda run=run, pixels=pixels: run(pixels) for to, run in graphs.items()}
            with torch.no_grad():
                times = timing.interleave(
                    calls, seconds=args.seconds, min_rounds=1 if args.quick else 5, warmup=1
                )
            setting = {"model": args.model, "batch": batch, "dtype": "float32"}
            found = {**timing.compare(times, ours=OURS), "missing": missing}
            record.add(f"{args.model}, batch {batch}", setting, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
