"""DoveTokens against plain lists of tensors."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import _pytree as pytree

from dove_ext.errors import TokensError
from dove_ext.tokens import DoveTokens

settings.register_profile("untimed", deadline=None)  # a busy machine is no fault
settings.load_profile("untimed")

SLOTS = 9
lengths_lists = st.lists(st.integers(1, SLOTS), min_size=1, max_size=6)


def make(lengths: list[int], width: int = 3, **fields: Any) -> tuple[list[Tensor], DoveTokens]:
    """Distinct values everywhere, so that any mix-up shows."""
    flat = torch.arange(sum(lengths) * width, dtype=torch.float32).view(-1, width)
    parts = list(flat.split(lengths))
    p_eos = torch.arange(len(lengths) * SLOTS, dtype=torch.float32).view(len(lengths), SLOTS) / 1000
    names = tuple(f"image {b}" for b in range(len(lengths)))
    return parts, DoveTokens.from_list(
        parts, SLOTS, **{"p_eos": p_eos, "names": names, "model": "m"} | fields
    )


def assert_holds(tokens: DoveTokens, parts: list[Tensor]) -> None:
    assert len(tokens) == len(parts)
    assert tokens.lengths.tolist() == [len(p) for p in parts]
    assert tokens.lengths.dtype == tokens.cu_seqlens.dtype == torch.int32
    for actual, expected in zip(tokens.to_list(), parts, strict=True):
        assert torch.equal(actual, expected)


def test_qualities_follow_their_images() -> None:
    tokens = make([3, 1, 5], psnr=torch.tensor([1.0, 2.0, 3.0]))[1]
    for chosen, left in (
        (tokens[[2, 0]], [3.0, 1.0]),
        (DoveTokens.cat([tokens[1], tokens]), [2.0, 1.0, 2.0, 3.0]),
    ):
        assert chosen.psnr is not None and chosen.psnr.tolist() == left
    assert tokens.truncate(2).psnr is None
    assert DoveTokens.cat([tokens, make([1])[1]]).psnr is None
    half = tokens.to(torch.float16)
    assert half.psnr is not None and half.psnr.dtype == torch.float32
    leaves, tree = pytree.tree_flatten(tokens)
    assert torch.equal(pytree.tree_unflatten(leaves, tree).psnr, tokens.psnr)


@given(lengths_lists, st.data())
def test_indexing_equals_that_of_a_list(lengths: list[int], data: st.DataObject) -> None:
    parts, tokens = make(lengths)
    count = len(lengths)
    kind = data.draw(
        st.sampled_from(
            ["int", "slice", "list", "mask", "int tensor", "bool tensor", "ints", "bools", "mask of scalars"]
        )
    )
    index: Any
    if kind == "int":
        index = data.draw(st.integers(-count, count - 1))
        chosen = [range(count)[index]]
    elif kind == "slice":
        index = data.draw(st.slices(count))
        chosen = list(range(count))[index]
    elif kind in ("list", "int tensor", "ints"):
        index = data.draw(st.lists(st.integers(-count, count - 1), max_size=8))
        chosen = [range(count)[i] for i in index]
        if kind != "list":
            index = torch.tensor(index, dtype=torch.int64) if kind == "int tensor" else np.array(index, int)
    else:
        index = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
        chosen = [b for b, keep in enumerate(index) if keep]
        if kind == "mask of scalars":  # as [n > 9 for n in tokens.lengths] is one
            index = [torch.tensor(keep) if b % 2 else np.bool_(keep) for b, keep in enumerate(index)]
        elif kind != "mask":
            index = torch.tensor(index) if kind == "bool tensor" else np.array(index)
    picked = tokens[index]
    assert_holds(picked, [parts[b] for b in chosen])
    assert picked.names == tuple(f"image {b}" for b in chosen)
    assert tokens.p_eos is not None and picked.p_eos is not None
    assert torch.equal(picked.p_eos, tokens.p_eos[chosen])
    assert (picked.num_slots, picked.model) == (SLOTS, "m")


@given(lengths_lists, st.data())
def test_truncate(lengths: list[int], data: st.DataObject) -> None:
    parts, tokens = make(lengths)
    n = data.draw(st.integers(1, SLOTS + 3))
    assert_holds(tokens.truncate(n), [p[:n] for p in parts])
    each = data.draw(st.lists(st.integers(1, SLOTS + 3), min_size=len(lengths), max_size=len(lengths)))
    for limits in (each, torch.tensor(each)):
        assert_holds(tokens.truncate(limits), [p[:m] for p, m in zip(parts, each, strict=True)])


@given(lengths_lists, st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]))
@settings(max_examples=30)
def test_padded_round_trip(lengths: list[int], dtype: torch.dtype) -> None:
    parts, tokens = make(lengths)
    parts, tokens = [p.to(dtype) for p in parts], tokens.to(dtype)
    for max_len in (None, SLOTS):
        padded, mask = tokens.to_padded(max_len)
        assert padded.shape == (len(lengths), max_len or max(lengths), 3) and padded.dtype == dtype
        assert mask.dtype == torch.bool and mask.sum(1).tolist() == lengths
        assert (padded[~mask] == 0).all()
        padded[~mask] = float("nan")  # what lies behind an end must not be read
        assert_holds(DoveTokens.from_padded(padded, lengths, SLOTS), parts)


@given(lengths_lists, lengths_lists)
@settings(max_examples=30)
def test_cat_and_iteration(a: list[int], b: list[int]) -> None:
    (parts_a, first), (parts_b, second) = make(a), make(b)
    joined = DoveTokens.cat([first, second])
    assert_holds(joined, parts_a + parts_b)
    assert joined.names == (first.names or ()) + (second.names or ())
    again = DoveTokens.cat(list(joined))
    assert_holds(again, parts_a + parts_b)
    assert DoveTokens.cat([first, make(b, p_eos=None)[1]]).p_eos is None


def test_nested_shares_memory() -> None:
    parts, tokens = make([3, 1, 5])
    nested = tokens.to_nested()
    assert nested.layout == torch.jagged
    for actual, expected in zip(nested.unbind(), parts, strict=True):
        assert torch.equal(actual, expected)
    assert nested.values().data_ptr() == tokens.tokens.data_ptr()


def test_neighbours_are_views() -> None:
    _, tokens = make([3, 1, 5])
    assert tokens[1:].tokens.data_ptr() == tokens.tokens[3:].data_ptr()


def test_empty_selection_is_a_batch_of_none() -> None:
    _, tokens = make([3, 1])
    for none in (tokens[0:0], tokens[[]], tokens[[False, False]]):
        assert len(none) == 0 and none.tokens.shape == (0, 3) and none.to_list() == []
        assert none.to_padded()[0].shape == (0, 0, 3)
        assert "0 images" in repr(none)
        assert_holds(none.truncate(1), [])
        assert_holds(DoveTokens.from_padded(torch.zeros(0, 4, 3), []), [])


def test_moves() -> None:
    _, tokens = make([3, 1])
    half = tokens.to(torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.p_eos is not None and half.p_eos.dtype == torch.float32
    assert half.cu_seqlens.dtype == torch.int32
    assert tokens.cpu().device.type == "cpu"
    assert tokens.to("meta").device.type == "meta"


def test_a_move_to_the_cpu_waits_for_the_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are checked there at once."""
    asked: list[tuple[torch.dtype, bool]] = []
    move = Tensor.to

    def recording(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        asked.append((tensor.dtype, kwargs["non_blocking"]))
        return move(tensor, *args, **kwargs)

    _, tokens = make([3, 1], p_eos=None)
    monkeypatch.setattr(Tensor, "to", recording)
    tokens.to("meta", non_blocking=True)
    tokens.to("cpu", non_blocking=True)
    assert asked == [
        (torch.float32, True),
        (torch.int32, True),
        (torch.float32, True),
        (torch.int32, False),
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:dove_ext has no compiled kernels")
def test_on_a_gpu(tmp_path: Path) -> None:
    parts, tokens = make([3, 1, 5])
    moved = tokens.pin_memory().cuda()
    assert moved.device.type == "cuda" and moved.p_eos is not None and moved.p_eos.is_cuda
    assert_holds(moved[[2, 0]].truncate(2).cpu(), [parts[2][:2], parts[0][:2]])
    assert_holds(DoveTokens.from_padded(moved.to_padded()[0], moved.lengths).cpu(), parts)
    moved.save(tmp_path / "t.safetensors")
    assert_holds(DoveTokens.load(tmp_path / "t.safetensors"), parts)


def test_gradient_flows_through_the_layouts() -> None:
    leaf = torch.randn(4, 3, requires_grad=True)
    tokens = DoveTokens(leaf, torch.tensor([0, 3, 4], dtype=torch.int32), SLOTS)
    (tokens.truncate(2).to_padded()[0].sum() + tokens[1].tokens.sum()).backward()
    assert leaf.grad is not None
    assert leaf.grad[:, 0].tolist() == [1, 1, 0, 2]


def test_repr() -> None:
    assert repr(make([3, 1])[1]) == ("DoveTokens(2 images, 4 tokens, mean 2.0 of 9, width 3, float32, cpu)")


def test_pickle_and_pytree() -> None:
    parts, tokens = make([3, 1])
    assert_holds(pickle.loads(pickle.dumps(tokens)), parts)
    doubled = pytree.tree_map(lambda t: t * 2 if t.is_floating_point() else t, tokens)
    assert_holds(doubled, [p * 2 for p in parts])
    shapes = pytree.tree_map(lambda t: tuple(t.shape), tokens)
    assert shapes.tokens == (4, 3) and shapes.psnr is None
    bare = pytree.tree_map(lambda t: t + 1, make([3, 1], p_eos=None)[1])  # what is not there is no leaf
    assert bare.p_eos is None and torch.equal(bare.tokens, tokens.tokens + 1)


def test_a_part_of_a_batch_is_copied_without_the_rest() -> None:
    """Pickles go to other processes, and a view would carry the storage behind it."""
    _, tokens = make([9] * 50, width=640)
    for part in (tokens[7], tokens[3:5], tokens.truncate(3)[1]):
        size = part.tokens.nbytes + part.p_eos.nbytes
        assert len(pickle.dumps(part)) < size + 4000
        copied = copy.deepcopy(part)
        assert copied.tokens.untyped_storage().nbytes() == part.tokens.nbytes
        assert_holds(copied, part.to_list())
    assert tokens[7].tokens.data_ptr() == tokens.tokens[63:].data_ptr(), "indexing shares memory"


@pytest.mark.parametrize("slots", [9.0, True, "9", None])
def test_slots_are_whole_numbers(slots: Any) -> None:
    with pytest.raises(TokensError, match="num_slots must be a whole number, got"):
        DoveTokens(torch.zeros(4, 3), torch.tensor([0, 3, 4], dtype=torch.int32), slots)


@pytest.mark.parametrize("names", [None, ("a", "b")])
def test_pytree_survives_json(names: tuple[str, ...] | None) -> None:
    parts, tokens = make([3, 1], names=names)
    leaves, spec = pytree.tree_flatten({"tokens": tokens})
    restored = pytree.treespec_loads(pytree.treespec_dumps(spec))
    assert restored == spec
    again = pytree.tree_unflatten(leaves, restored)["tokens"]
    assert_holds(again, parts)
    assert (again.num_slots, again.model, again.names) == (SLOTS, "m", names)


def test_is_immutable() -> None:
    with pytest.raises(AttributeError):
        make([1])[1].num_slots = 3  # type: ignore[misc]


# --- Refusals ---------------------------------------------------------------------------------------------


def cu(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"tokens": torch.zeros(4)}, r"tokens must be floating point \[T, D\], got float32 \[4\]"),
        ({"tokens": torch.zeros(4, 3, dtype=torch.int64)}, "floating point"),
        ({"tokens": torch.zeros(4, 0)}, "floating point"),
        ({"cu_seqlens": torch.tensor([0, 3, 4])}, r"cu_seqlens must be int32 \[B \+ 1\], got int64"),
        ({"cu_seqlens": cu()}, "cu_seqlens must be int32"),
        ({"cu_seqlens": cu(1, 4)}, "must run from 0 to T = 4, got 1 to 4"),
        ({"cu_seqlens": cu(0, 3)}, "must run from 0 to T = 4, got 0 to 3"),
        ({"cu_seqlens": cu(0, 3, 2, 4)}, "image 1 has -1 tokens"),
        ({"cu_seqlens": cu(0, 0, 4)}, "image 0 has 0 tokens; every image must have 1 to 9"),
        ({"cu_seqlens": cu(0, 2147483647, -2147483648, 4)}, "image 0 has 2147483647 tokens"),
        ({"num_slots": 2}, "image 0 has 3 tokens; every image must have 1 to 2"),
        ({"num_slots": 0}, "num_slots must be between 1 and 65536, got 0"),
        ({"p_eos": torch.zeros(2, 8)}, r"p_eos must be float32 \[2, 9\], got float32 \[2, 8\]"),
        ({"p_eos": torch.zeros(2, 9).double()}, "p_eos must be float32"),
        ({"psnr": torch.zeros(3)}, r"psnr must be float32 \[2\], got float32 \[3\]"),
        ({"names": ("a",)}, "there are 1 names for 2 images"),
        ({"tokens": torch.zeros(4, 3, device="meta")}, "tensors are on cpu and meta"),
    ],
)
def test_constructor_refuses(fields: dict[str, Any], words: str) -> None:
    good: dict[str, Any] = {"tokens": torch.zeros(4, 3), "cu_seqlens": cu(0, 3, 4), "num_slots": SLOTS}
    DoveTokens(**good)
    with pytest.raises(TokensError, match=words):
        DoveTokens(**good | fields)


def test_methods_refuse() -> None:
    _, tokens = make([3, 1])
    for call, error, words in [
        (lambda: tokens[2], IndexError, "no image 2 among 2"),
        (lambda: tokens[[True]], IndexError, "mask of 1 cannot choose among 2"),
        (lambda: tokens["a"], TypeError, "ints, slices, booleans"),
        (lambda: tokens[[torch.tensor(1.7)]], TypeError, "ints, slices, booleans"),
        (lambda: tokens.truncate(10**20), TokensError, "at most 64 bits, got 100000000000000000000"),
        (lambda: tokens.truncate(0), TokensError, "keeps at least 1 token"),
        (lambda: tokens.truncate([1]), TokensError, "one for each of the 2 images"),
        (lambda: tokens.truncate(1.5), TokensError, "whole numbers"),
        (lambda: tokens.to_padded(2), TokensError, "an image has 3 tokens, more than max_len=2"),
        (lambda: DoveTokens.from_list([], 9), TokensError, "list of token tensors is empty"),
        (lambda: DoveTokens.from_list([torch.zeros(1, 2), torch.zeros(1, 3)], 9), TokensError, "image 1 has"),
        (
            lambda: DoveTokens.from_padded(torch.zeros(2, 4, 3), [1]),
            TokensError,
            "lengths must have the shape",
        ),
        (lambda: DoveTokens.from_padded(torch.zeros(1, 4, 3), [5]), TokensError, "between 1 and L = 4"),
        (lambda: DoveTokens.from_padded(torch.zeros(1, 4, 3), [2.9]), TokensError, "lengths must be whole"),
        (lambda: DoveTokens.from_padded(torch.zeros(1, 4, 3), [2], 0), TokensError, "num_slots must be"),
        (lambda: DoveTokens.cat([]), TokensError, "no tokens to join"),
        (
            lambda: DoveTokens.cat([tokens, make([1], model="n")[1]]),
            TokensError,
            "model differs: 'm' and 'n'",
        ),
        (lambda: DoveTokens.cat([tokens, make([1], width=2)[1]]), TokensError, "width differs: 3 and 2"),
    ]:
        with pytest.raises(error, match=words):
            call()  # type: ignore[no-untyped-call]


def test_require_names_the_right_model() -> None:
    _, tokens = make([3, 1])
    tokens.require(3, SLOTS, "m")
    tokens.require(3, SLOTS)
    with pytest.raises(TokensError, match=r"3 wide in 9 slots, but this model needs 4 in 9; .* 'm'"):
        tokens.require(4, SLOTS)
    with pytest.raises(TokensError, match=r"made by 'm', but this model is 'other'; decode with .* 'm'"):
        tokens.require(3, SLOTS, "other")
