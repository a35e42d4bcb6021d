"""What a GPU runs differently: one pass without a wait, a late answer to "have all ended", fused blocks."""

from __future__ import annotations

import copy
import pickle
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

import dove_ext
from dove_ext import DoveModel
from dove_ext.models import generator, graphs, stack
from dove_ext.models.batches import Encoded
from dove_ext.models.graphs import EncodeGraphs, filled_up, graph_size
from dove_ext.models.query import Query
from dove_ext.tokens.lengths import LengthRule
from tests.models.micro import SLOTS, micro, photos, stop_at_share

TOLERANCE = {"rtol": 0.0, "atol": 1e-3}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model() -> DoveModel:
    return stop_at_share(micro())


@pytest.mark.parametrize(
    "rule",
    [
        LengthRule(),
        LengthRule(min_tokens=20),
        LengthRule(max_tokens=20),
        LengthRule(num_tokens=7),
        LengthRule(eos_threshold=0.3),
    ],
    ids=str,
)
def test_one_pass_equals_encode(model: DoveModel, rule: LengthRule) -> None:
    expected = model.encode(photos(8), **asdict(rule))
    pixels = photos(8).float() / 127.5 - 1
    tokens, lengths, p_eos = model.encode_at_once(pixels, rule=rule)
    assert p_eos is None
    assert lengths.tolist() == expected.lengths.tolist()
    for ours, padded, length in zip(expected.to_list(), tokens, lengths, strict=True):
        torch.testing.assert_close(ours, padded[:length], **TOLERANCE)


def test_one_pass_gives_the_whole_curve(model: DoveModel) -> None:
    expected = model.encode(photos(3), return_p_eos=True)
    _, lengths, p_eos = model.encode_at_once(photos(3).float() / 127.5 - 1, whole_curve=True)
    assert p_eos is not None and p_eos.shape == (3, SLOTS)
    assert expected.p_eos is not None
    torch.testing.assert_close(p_eos, expected.p_eos, **TOLERANCE)
    assert lengths.tolist() == expected.lengths.tolist()


def test_filled_up_batches_hold_the_same_images(model: DoveModel) -> None:
    pixels = photos(3).float() / 127.5 - 1
    tokens, lengths, _ = model.encode_at_once(pixels)
    more, more_lengths, _ = model.encode_at_once(filled_up(pixels, 8))
    assert more_lengths.shape == (8,)
    assert more_lengths[:3].tolist() == lengths.tolist()
    torch.testing.assert_close(more[:3], tokens, **TOLERANCE)
    assert filled_up(pixels, 3) is pixels


def test_sizes_of_graphs() -> None:
    assert [graph_size(n, 32) for n in (1, 2, 3, 5, 17, 32)] == [1, 2, 4, 8, 32, 32]
    assert [graph_size(n, 24) for n in (1, 9, 17, 24)] == [1, 16, 24, 24]


def test_a_late_answer_changes_nothing(model: DoveModel, monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(generator.StopCheck):
        blocks = 0

        def __init__(self) -> None:
            super().__init__()
            self.flags: list[bool] = []

        def all_ended(self, ended: Tensor) -> bool:
            Late.blocks += 1
            self.flags.append(bool(ended))
            return len(self.flags) > 1 and self.flags[-2]

    pictures = photos(8)[model.encode(photos(8)).lengths < SLOTS - 8]
    assert len(pictures) >= 3, "some images should end early"
    expected = model.encode(pictures, block_size=4)
    longest = int(expected.lengths.max())
    monkeypatch.setattr(generator, "StopCheck", Late)
    late = model.encode(pictures, block_size=4)
    assert late.lengths.tolist() == expected.lengths.tolist()
    torch.testing.assert_close(late.tokens, expected.tokens, **TOLERANCE)
    assert Late.blocks == longest // 4 + 2, "one block more than needed"


@pytest.mark.parametrize("autocast", [False, True])
def test_fused_blocks_equal_plain_ones(monkeypatch: pytest.MonkeyPatch, autocast: bool) -> None:
    torch.manual_seed(0)
    layers = stack.Stack(micro().config.generator)
    layers.reset_parameters()
    for parameter in layers.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 9, 64, requires_grad=True)

    def results() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = layers(x, prefix=4).float()
        return [out, *torch.autograd.grad(out.square().sum(), [x, *layers.parameters()])]

    exact = results()
    calls = []
    monkeypatch.setattr(stack, "fuses", lambda tensor: calls.append(tensor.dtype) or True)
    for actual, plain in zip(results(), exact, strict=True):
        assert actual.dtype == plain.dtype
        error = float((actual - plain).detach().norm() / plain.detach().norm())
        assert error < (0.05 if autocast else 1e-3), error  # bfloat16 rounds at other places
    assert {*calls} == {torch.bfloat16 if autocast else torch.float32, torch.float32}


def test_graphs_need_cuda(model: DoveModel) -> None:
    with pytest.raises(ValueError, match="cuda_graph needs the model on a CUDA device, but it is on cpu"):
        model.encode(photos(1), cuda_graph=True)


def test_copies_of_a_model_start_without_graphs(model: DoveModel) -> None:
    used = EncodeGraphs()
    used._recorded[1] = used  # type: ignore[assignment]
    assert not copy.deepcopy(used)._recorded
    assert not pickle.loads(pickle.dumps(used))._recorded


class Recorded:
    """A recording without a GPU: it hands its input back through memory that all replays share."""

    made = 0
    query: Query | None = None

    def __init__(self, encode: Any, pixels: Tensor, query: Query | None, pool: Any) -> None:
        Recorded.made += 1
        Recorded.query = query
        self.pixels = pixels.clone()

    def replay(self, pixels: Tensor, query: Query | None) -> Encoded:
        self.pixels[: len(pixels)].copy_(pixels)
        time.sleep(0.01)
        return Encoded(self.pixels.flatten(2).clone(), torch.ones(len(self.pixels)), None)


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> type[Recorded]:
    monkeypatch.setattr(graphs, "_Recorded", Recorded)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    for name in ("current_stream", "Event", "graph_pool_handle"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    monkeypatch.setattr(Recorded, "made", 0)
    return Recorded


def run(shared: EncodeGraphs, model: DoveModel, pixels: Tensor, kind: Any = None) -> Tensor:
    return shared.run(model, model.encode_at_once, pixels, None, batch_size=4, kind=kind)[0]


def test_threads_take_turns(model: DoveModel, recordings: type[Recorded]) -> None:
    shared = EncodeGraphs()

    def values(value: int) -> list[float]:
        return run(shared, model, torch.full((1, 3, 2, 2), float(value))).unique().tolist()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(values, range(16))) == [[float(value)] for value in range(16)]
    assert recordings.made == 1


def test_fewer_images_than_the_graph_has(model: DoveModel, recordings: type[Recorded]) -> None:
    shared = EncodeGraphs()
    for count in (4, 3, 4):
        pixels = torch.rand(count, 3, 2, 2)
        assert torch.equal(run(shared, model, pixels), pixels.flatten(2))
    assert recordings.made == 1


def test_queries_of_one_padded_length_share_a_recording(model: DoveModel, recordings: type[Recorded]) -> None:
    shared = EncodeGraphs()

    def made(count: int, query: Query) -> int:
        pixels = torch.rand(count, 3, 2, 2)
        shared.run(model, model.encode_at_once, pixels, query, batch_size=4, kind=None)
        return recordings.made

    ids = torch.arange(20).view(4, 5)
    assert made(3, Query(ids[:3]).padded(8)) == 1
    filled = recordings.query
    assert filled is not None and filled.lengths is not None
    assert filled.values[3].tolist() == [10, 11, 12, 13, 14, 0, 0, 0] and filled.lengths.tolist() == [5] * 4
    assert made(4, Query(ids[:, :3], torch.tensor([3, 1, 2, 3], dtype=torch.int32)).padded(8)) == 1
    assert made(4, Query(ids)) == 2


def test_other_settings_need_another_recording(model: DoveModel, recordings: type[Recorded]) -> None:
    shared, pixels = EncodeGraphs(), torch.zeros(1, 3, 2, 2)

    def made() -> int:
        run(shared, model, pixels)
        return recordings.made

    assert (made(), made()) == (1, 1)
    torch.set_autocast_enabled("cuda", True)
    try:
        assert made() == 2
    finally:
        torch.set_autocast_enabled("cuda", False)
    previous = dove_ext.set_backend("torch")
    try:
        assert made() == 3
    finally:
        dove_ext.set_backend(previous)
    precision = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        assert made() == 4
    finally:
        torch.backends.cuda.matmul.fp32_precision = precision
    assert made() == 4
    pixels = pixels.byte()
    assert made() == 5


def test_weights_that_have_moved_are_recorded_anew(recordings: type[Recorded]) -> None:
    moving, shared, pixels = micro(), EncodeGraphs(), torch.zeros(1, 3, 2, 2)
    layers = moving.generator.stack.layers

    def made() -> int:
        run(shared, moving, pixels)
        return recordings.made

    assert (made(), made()) == (1, 1)
    with torch.no_grad():
        moving.generator.embed_out.bias.add_(1)  # in place: the graph reads it
    assert made() == 1
    moving.double()
    assert made() == 2
    moving.generator.embed_out.bias = torch.nn.Parameter(moving.generator.embed_out.bias.clone())
    assert made() == 3
    moving.generator.times = moving.generator.times.clone()
    assert made() == 4
    layers[0] = copy.deepcopy(layers[0])
    assert (made(), made()) == (5, 5)


def test_recordings_that_were_not_used_for_longest_go(
    model: DoveModel, recordings: type[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "_KEPT", 2)
    shared, pixels = EncodeGraphs(), torch.zeros(1, 3, 2, 2)
    for kind in ("a", "b", "a", "c", "a"):
        run(shared, model, pixels, kind)
    assert recordings.made == 3
    run(shared, model, pixels, "b")
    assert recordings.made == 4


def test_what_cannot_be_recorded_says_so(recordings: type[Recorded], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "_Recorded", refused)
    with pytest.raises(RuntimeError, match=r"not permitted when stream is capturing.*Pass cuda_graph=False"):
        run(EncodeGraphs(), micro(), torch.zeros(1, 3, 2, 2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("count", [1, 3, 8])
def test_graphs_give_what_blocks_give(count: int) -> None:
    model = stop_at_share(micro()).cuda()
    expected = model.encode(photos(count), batch_size=4, cuda_graph=False)
    for _ in range(2):  # recorded, then replayed
        tokens = model.encode(photos(count), batch_size=4)
        assert tokens.lengths.tolist() == expected.lengths.tolist()
        torch.testing.assert_close(tokens.tokens, expected.tokens, rtol=0, atol=2e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("longest", [5, 7])
def test_graphs_and_prefixes_give_what_the_cpu_gives_for_queries(longest: int) -> None:
    model = stop_at_share(micro())
    lengths = torch.tensor([longest, 1, 3], dtype=torch.int32)
    query = Query(torch.randn(3, longest, 64), lengths)
    expected = model.encode(photos(3), query=query)
    model.cuda()
    seen = model.prefix(photos(3))
    for images, graph in ((photos(3), True), (photos(3), True), (photos(3), False), (seen, False)):
        tokens = model.encode(images, query=query, batch_size=2, cuda_graph=graph)
        assert tokens.lengths.tolist() == expected.lengths.tolist()
        torch.testing.assert_close(tokens.tokens.cpu(), expected.tokens, rtol=0, atol=2e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize(
    "control", [{}, {"min_tokens": 9}, {"num_tokens": 7}, {"token_budget": 99, "min_tokens": 9}], ids=str
)
def test_encode_waits_once(control: dict[str, int]) -> None:
    model = stop_at_share(micro()).cuda()
    model.encode(photos(8), batch_size=4, **control)  # recorded
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            model.encode(photos(8), batch_size=4, **control)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([w for w in waits if "synchroniz" in str(w.message)]) == (control.keys() <= {"min_tokens"})
