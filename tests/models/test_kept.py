"""Without `attend_padding` only kept tokens get keys and values: the same results as with all of them."""

from __future__ import annotations

import copy
import pickle
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import dove_ext
from dove_ext import DoveTokens
from dove_ext.models import generator
from dove_ext.models.dove import DoveModel
from dove_ext.models.stack import Attention
from tests.models.micro import SLOTS, STACK, micro

pytestmark = pytest.mark.usefixtures("one_thread")
LENGTHS = [SLOTS, 1, 20, SLOTS - 1]


class Paths:
    """Which keys and values the token decoder makes; `rows`: of how many slots the last layer made them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch, self.rows = patch, 0
        to_kept = Attention.to_kept

        def counted(attention: Attention, x: Tensor, kept: Any, rotary: Tensor) -> Tensor:
            self.rows = kept.total
            return to_kept(attention, x, kept, rotary)

        patch.setattr(Attention, "to_kept", counted)

    def fewest(self, dropped: int) -> None:
        self.patch.setattr(generator, "FEWEST_DROPPED", {"cpu": dropped, "cuda": dropped})
        self.rows = 0


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> Paths:
    return Paths(monkeypatch)


def both(paths: Paths, run: Any) -> tuple[Any, Any]:
    """What `run()` returns with keys of the kept tokens alone, and with those of all slots."""
    paths.fewest(1)
    ours = run()
    assert paths.rows
    paths.fewest(10**9)
    padded = run()
    assert not paths.rows
    return ours, padded


def some_tokens(dtype: torch.dtype = torch.float32) -> DoveTokens:
    padded = torch.randn(len(LENGTHS), SLOTS, 64, generator=torch.Generator().manual_seed(2))
    return DoveTokens.from_padded(padded.to(dtype), LENGTHS, model="micro")


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_pictures_are_those_of_the_padded_path(paths: Paths, backend: str) -> None:
    model, tokens = micro(attend_padding=False), some_tokens()
    previous = dove_ext.set_backend(backend)
    try:
        ours, padded = both(paths, lambda: model.decode(tokens))
    finally:
        dove_ext.set_backend(previous)
    torch.testing.assert_close(ours, padded, rtol=0, atol=2e-5)


def test_an_image_does_not_depend_on_its_batch(paths: Paths) -> None:
    paths.fewest(1)
    model, tokens = micro(attend_padding=False), some_tokens()
    together = model.decode(tokens)
    assert paths.rows == sum(LENGTHS)
    for batch_size in (1, 3):
        torch.testing.assert_close(model.decode(tokens, batch_size=batch_size), together, rtol=0, atol=2e-5)


@torch.no_grad()
def test_bfloat16_errs_no_more_than_the_padded_path(paths: Paths) -> None:
    decoder = micro(attend_padding=False).token_decoder
    tokens, lengths = some_tokens(torch.bfloat16).to_padded()[0], torch.tensor(LENGTHS, dtype=torch.int32)
    exact = decoder(tokens.float(), lengths)
    ours, padded = both(paths, lambda: decoder.to(torch.bfloat16)(tokens, lengths))
    assert ours.dtype == torch.bfloat16
    assert (ours - exact).norm() <= 1.2 * (padded - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_are_those_of_the_padded_path(paths: Paths, autocast: bool) -> None:
    model = micro(attend_padding=False)
    tokens = torch.randn(len(LENGTHS), SLOTS, 64, requires_grad=True)
    lengths = torch.tensor(LENGTHS, dtype=torch.int32)
    trained = dict(model.token_decoder.named_parameters())

    def gradients() -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            latents = model.token_decoder(tokens, lengths)
        return torch.autograd.grad(latents.float().square().sum(), [tokens, *trained.values()])

    ours, padded = both(paths, gradients)
    for name, mine, theirs in zip(["tokens", *trained], ours, padded, strict=True):
        error = (mine - theirs).norm() / theirs.norm()
        assert error <= (2e-2 if autocast else 1e-5), (name, error)


def test_what_is_kept_in_full_or_not_at_all_goes_the_padded_way(paths: Paths) -> None:
    paths.fewest(1)
    decoder = micro(attend_padding=False).token_decoder
    tokens = torch.randn(2, SLOTS, 64)
    for length in (SLOTS, 0):
        assert decoder(tokens, torch.full((2,), length, dtype=torch.int32)).isfinite().all()
    assert not paths.rows


def test_lengths_are_read_on_the_cpu_alone(paths: Paths) -> None:
    paths.fewest(1)
    known = torch.tensor([3, 5], dtype=torch.int32)
    assert generator.kept_total(known, None, 2 * SLOTS) == 8
    elsewhere = known.to("meta")
    paths.patch.setitem(generator.FEWEST_DROPPED, "meta", 1)
    assert generator.kept_total(elsewhere, None, 2 * SLOTS) is None
    assert generator.kept_total(elsewhere, 8, 2 * SLOTS) == 8
    paths.fewest(2 * SLOTS - 7)  # 2 * SLOTS - 8 are dropped
    assert generator.kept_total(known, None, 2 * SLOTS) is None


@pytest.mark.parametrize(("total", "pays"), [(0, False), (1, True), (112, True), (113, False), (128, False)])
def test_fewer_dropped_than_an_eighth_do_not_pay(total: int, pays: bool) -> None:
    lengths = torch.tensor([total // 2, total - total // 2], dtype=torch.int32)
    assert (generator.kept_total(lengths, None, 128) is not None) == pays


def test_compiles_once_for_all_lengths(paths: Paths) -> None:
    """In a compiled graph sizes would follow from values: there all slots get keys."""
    paths.fewest(1)
    decoder = micro(attend_padding=False, token_decoder=replace(STACK, layers=1)).token_decoder
    graphs: list[Any] = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    compiled = torch.compile(decoder, fullgraph=True, backend=count)
    tokens = torch.randn(2, SLOTS, 64)
    for length in (3, 40):
        lengths = torch.full((2,), length, dtype=torch.int32)
        with torch.no_grad():
            torch.testing.assert_close(
                compiled(tokens, lengths, total=2 * length), decoder(tokens, lengths), rtol=0, atol=1e-4
            )
    assert len(graphs) == 1


def test_a_copied_model_decodes_the_same(paths: Paths) -> None:
    paths.fewest(1)
    model, tokens = micro(attend_padding=False), some_tokens()
    expected = model.decode(tokens)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(other, DoveModel)
        assert torch.equal(other.decode(tokens), expected)
