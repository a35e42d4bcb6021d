"""GFLOPs of an image, counted on the meta device: shapes only, at full size, in no time.

The ops of dove_ext are opaque to PyTorch's counter, so their formulas are given here. Attention counts the
pairs that are seen. The scan for EOS counts what it cannot avoid: each position against the witness rows, and
one position an image against the whole vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dove_ext import ops as ops  # registers the operators
from dove_ext.ops.attention_reference import FULL

from . import build, llm
from .systems import SYSTEMS, TOKENS, System, wanted

META = torch.device("meta")


def attention(q: Any, k: Any, v: Any, *rest: Any, out_shape: Any = None, **_: Any) -> int:
    """2 products of 2 D operations for each pair that is seen."""
    prefix = rest[4]
    batch, queries, heads, width = q[-4:]
    keys = k[-3]
    if prefix >= FULL:
        pairs = queries * keys
    else:
        first = keys - queries
        pairs = sum(max(first + i + 1, min(prefix, keys)) for i in range(queries))
    return 4 * batch * heads * width * pairs


def eos_scan(hidden: Any, weight: Any, *rest: Any, out_shape: Any = None, **_: Any) -> int:
    """Fewest: EOS and the witnesses at all positions, the whole vocabulary once an image."""
    batch, positions, width = hidden
    witnesses = rest[-1][0] if isinstance(rest[-1], (tuple, list, torch.Size)) and rest[-1] else 0
    return 2 * batch * width * (positions * (1 + witnesses) + weight[0])


def count(call: Callable[[], Any]) -> float:
    """GFLOPs of a call on meta tensors."""
    formulas = {torch.ops.dove.attention: attention, torch.ops.dove.eos_scan: eos_scan}
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        call()
    return counter.get_total_flops() / 1e9


def dove_work(system: System) -> dict[str, Callable[[], Any]]:
    """The steps of dove-base or dove-tiny for one image; own lengths are those of `OWN_LENGTHS`."""
    model = build.dove_model(system.name.rsplit("-", 1)[0], system.dtype, META, system.size, ())
    config = model.config
    pixels = torch.empty(1, 3, system.size, system.size, dtype=system.dtype, device=META)
    latents = pixels.new_empty(1, config.num_tokens, config.vqgan.latent_channels)
    padded = pixels.new_empty(1, config.num_tokens, config.token_width)
    lengths = torch.empty(1, dtype=torch.int32, device=META)
    counts = [system.tokens] if system.tokens else build.OWN_LENGTHS

    def generate(latents: Any) -> None:
        condition = model.condition_on(latents)
        for n in counts:
            model.generator.first_stop(model.generator(condition, n))

    return {
        "VQGAN encoder": lambda: model.vqgan.encode(pixels),
        build.GENERATOR: lambda: generate(latents),
        "decode": lambda: model.render(padded, lengths),
        "VQGAN decoder": lambda: model.vqgan.decode(latents),
    }


def of_system(system: System) -> dict[str, float]:
    """Stage -> GFLOPs an image; stages that depend on values cannot be counted and are left out."""
    if system.build is build.dove:
        counted = {stage: count(call) for stage, call in dove_work(system).items()}
        if system.tokens is None:
            counted[build.GENERATOR] /= len(build.OWN_LENGTHS)
        counted["encode"] = counted["VQGAN encoder"] + counted[build.GENERATOR]
        return counted
    found = {}
    for stage, make in system.build(system, 1, META).items():
        try:
            found[stage] = count(make())
        except (NotImplementedError, RuntimeError):  # a choice that depends on values
            continue
    return found


def table(only: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Every system once, whatever the ways in which it is run, and the language models' prefills.

    Args:
        only: starts of names; other systems, and the language models, are left out.
    """
    rows, seen = [], set()
    for system in SYSTEMS:
        if not wanted(system, only):
            continue
        if system.name in seen or system.way == build.COMPILED or system.build is build.onnx:
            continue
        seen.add(system.name)
        try:
            counted = of_system(system)
        except ImportError:  # a peer that is not there
            continue
        rows += [
            {"system": system.name, "tokens": system.tokens, "stage": stage, "gflop": gflop}
            for stage, gflop in counted.items()
        ]
    for way in () if only else llm.SHAPES:
        try:
            with META:
                model = llm.Prefill(512, llm.SHAPES[way])
        except ImportError:
            break
        for n in (*TOKENS, build.OWN_LENGTHS[0]):
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                tokens = torch.empty(1, n, 512, device=META)
                gflop = count(lambda m=model, t=tokens: m(t))
            rows.append({"system": "Llama", "way": way, "tokens": n, "stage": "prefill", "gflop": gflop})
    return rows
