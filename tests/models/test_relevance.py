"""Where a query points: the backbone, the map, and tokens of the places it names."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dove_ext import CheckpointError, DoveConfig, DoveModel, DoveTokens, Query, QueryError
from dove_ext.models import pretrained
from dove_ext.models.backbone import STAGES, STRIDE, Backbone, Convolution, channels
from dove_ext.models.relevance import FLOOR, NULL_WORD
from tests.conftest import import_or_skip
from tests.models.micro import GRID, linear, micro, photos, pixels, pointing

import_or_skip("tokenizers")

pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = {"rtol": 0.0, "atol": 1e-3}  # see test_encode.py
RULES: list[dict[str, Any]] = [
    {}, {"num_tokens": 17}, {"min_tokens": 20}, {"max_tokens": 20}, {"eos_threshold": 0.3},
    {"token_budget": 99}, {"target_psnr": 12.0}, {"return_p_eos": True},
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DoveModel:
    return pointing(tmp_path_factory.mktemp("model"))


def same(actual: DoveTokens, expected: DoveTokens) -> None:
    assert actual.lengths.tolist() == expected.lengths.tolist()
    torch.testing.assert_close(actual.tokens, expected.tokens, **TOLERANCE)


# --- The backbone -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "scale", "expected"),
    [(112, 1.1, 120), (320, 1.1, 352), (16, 1.1, 16), (40, 1.1, 48), (16, 0.1, 8)],
)
def test_widths_are_multiples_of_eight(width: int, scale: float, expected: int) -> None:
    assert channels(width, scale) == expected


@torch.no_grad()
def test_every_position_sees_what_it_would_see_at_the_stride_of_the_classifier() -> None:
    torch.manual_seed(0)
    backbone = Backbone(0.2, 0.6).eval()
    strided = copy.deepcopy(backbone)
    for block in strided.blocks:
        depthwise = block.depthwise
        first = (
            depthwise.dilation == (1, 1) and depthwise.in_channels == channels(112, 0.2) * STAGES[5].expand
        )
        if first and depthwise.out_channels == depthwise.in_channels and not block.adds:
            depthwise.stride = (2, 2)
        depthwise.dilation = (1, 1)
    assert sum(block.depthwise.stride == (2, 2) for block in strided.blocks) == 4
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    wide = backbone(images)[:, channels(112, 0.2) :]
    narrow = _last(strided, images)
    assert wide.shape[-1] == 64 // STRIDE and narrow.shape[-1] == 64 // STRIDE // 2
    torch.testing.assert_close(wide[..., 1::2, 1::2], narrow)


def _last(backbone: Backbone, images: Tensor) -> Tensor:
    x = F.relu6(backbone.stem(images))
    for block in backbone.blocks:
        x = block(x)
    return x


def test_padding_is_larger_below_and_to_the_right() -> None:
    convolution = Convolution(1, 1, 3, stride=2, bias=False)
    torch.nn.init.ones_(convolution.weight)
    out = convolution(torch.ones(1, 1, 4, 4))[0, 0]
    assert out.tolist() == [[9.0, 6.0], [6.0, 4.0]]


# --- What a query does --------------------------------------------------------------------------------


def test_a_map_follows_its_query(model: DoveModel) -> None:
    dog, table = (model.encode(photos(3), query=q, return_relevance=True) for q in ("the dog", "table"))
    assert dog.relevance is not None and table.relevance is not None
    assert dog.relevance.shape == (3, GRID, GRID)
    least, most = dog.relevance.aminmax()
    assert FLOOR / (1 + FLOOR) < least < most <= 1
    assert (dog.relevance - table.relevance).abs().max() > 0.05


def test_tokens_are_those_of_the_map_as_a_relevance(model: DoveModel) -> None:
    asked = model.encode(photos(3), query="the dog", return_relevance=True, num_tokens=30)
    given = model.encode(photos(3), relevance=asked.relevance, return_relevance=True, num_tokens=30)
    same(given, asked)
    # The largest value of a relevance that is given counts as 1.
    assert asked.relevance is not None and given.relevance is not None
    scale = asked.relevance.flatten(1).amax(1)[:, None, None]
    torch.testing.assert_close(given.relevance * scale, asked.relevance)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_null_is_the_whole_picture(model: DoveModel, rule: dict[str, Any]) -> None:
    expected = linear_twin(model).encode(photos(4), **rule)
    for query in (None, "null", [None, "null", None, "null"]):
        same(model.encode(photos(4), query=query, **rule), expected)


@pytest.mark.parametrize("tiles", [None, 2])
def test_nulls_are_one_an_image(model: DoveModel, tiles: int | None) -> None:
    with pytest.raises(QueryError, match="query has 1 rows for 2 images"):
        model.encode(photos(2), query=["null"], tiles=tiles)


def test_the_whole_picture_is_a_map_whatever_the_default_dtype(model: DoveModel) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        maps = model.encode(photos(2), query="null", return_relevance=True).relevance
    finally:
        torch.set_default_dtype(torch.float32)
    assert maps is not None and maps.dtype == torch.float32 and bool((maps == 1).all())


def linear_twin(model: DoveModel) -> DoveModel:
    """The same model without queries."""
    twin = linear()
    own = {n: t for n, t in model.state_dict().items() if not n.startswith("relevance.")}
    twin.load_state_dict(own)
    return twin


@pytest.mark.parametrize("rule", [rule for rule in RULES if "token_budget" not in rule], ids=str)
def test_no_image_depends_on_anothers_query(model: DoveModel, rule: dict[str, Any]) -> None:
    queries = ["the dog", None, "table", "null"]
    together = model.encode(photos(4), query=queries, batch_size=3, return_relevance=True, **rule)
    for i, query in enumerate(queries):
        alone = model.encode(photos(4)[i : i + 1], query=query, return_relevance=True, **rule)
        same(together[i], alone)
        torch.testing.assert_close(together[i].relevance, alone.relevance, **TOLERANCE)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_prefix_gives_the_same_tokens(model: DoveModel, rule: dict[str, Any]) -> None:
    seen = model.prefix(photos(3))
    for query in ("the dog", None, ["table", "null", "the dog on the table"]):
        same(model.encode(seen, query=query, **rule), model.encode(photos(3), query=query, **rule))
    if "token_budget" not in rule:
        alone = model.encode(photos(3)[1:2], query="table", **rule)
        same(model.encode(seen[1], query="table", **rule), alone)


def test_words_may_come_as_ids_or_embeddings(model: DoveModel) -> None:
    assert model.relevance is not None
    ids = torch.tensor([[2, 3], [4, 0]])
    lengths = torch.tensor([2, 1], dtype=torch.int32)
    expected = model.encode(photos(2), query=["the dog", "table"])
    same(model.encode(photos(2), query=Query(ids, lengths)), expected)
    same(model.encode(photos(2), query=Query(model.relevance.words(ids).detach(), lengths)), expected)
    whole = Query(torch.full((2, 1), NULL_WORD))
    same(model.encode(photos(2), query=whole), model.encode(photos(2)))


def test_a_target_is_reached_where_the_map_points(model: DoveModel) -> None:
    tokens = model.encode(photos(3), query="the dog", target_psnr=12.0)
    assert tokens.psnr is not None and (tokens.psnr[tokens.lengths < model.config.num_tokens] >= 12.0).all()


def test_a_query_reaches_the_weights_of_the_map(model: DoveModel) -> None:
    query = model.queries("the dog", 2)
    assert query is not None and model.relevance is not None
    condition = model.condition(pixels(2), query)
    assert condition.relevance is not None
    condition.relevance.sum().backward()
    for name in ("words", "backbone.stem", "from_features", "places", "to_change"):
        parameters = [p for n, p in model.relevance.named_parameters() if n.startswith(name)]
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in parameters), name
    model.zero_grad()


# --- What is refused ----------------------------------------------------------------------------------


def test_what_contradicts_itself_is_refused(model: DoveModel) -> None:
    relevance = torch.rand(GRID, GRID)
    with pytest.raises(ValueError, match="leave one of them out"):
        model.encode(photos(1), query="the dog", relevance=relevance)
    with pytest.raises(ValueError, match="leave one of them out"):
        model.condition(pixels(1), model.queries("dog", 1), relevance.view(1, -1))
    with pytest.raises(ValueError, match="leave cuda_graph out"):
        model.encode(model.prefix(photos(1)) if model.device.type == "cuda" else photos(1), cuda_graph=True)
    with pytest.raises(ValueError, match="asked of pictures"):
        model.condition_on(torch.zeros(1, GRID**2, 16), model.queries("dog", 1))
    with pytest.raises(ValueError, match="has no relevance map"):
        micro().encode(photos(1), return_relevance=True)
    with pytest.raises(QueryError, match="embeddings"):
        model.encode(photos(1), query=Query(torch.zeros(1, 2, 64)))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"shortcut": False}, "relevance needs shortcut=True"),
        ({"query_vocab_size": 0, "query_length": 0}, "relevance needs shortcut=True"),
        ({"image_size": 16}, "multiple of 32"),
        ({"relevance": {"backbone_width": 0}}, "backbone_width must be above 0"),
        ({"relevance": 3}, "relevance must be an object"),
    ],
    ids=str,
)
def test_a_shape_that_makes_no_map_is_refused(
    model: DoveModel, change: dict[str, Any], sentence: str
) -> None:
    import json

    values = json.loads(model.config.to_json()) | change
    with pytest.raises(CheckpointError, match=sentence):
        DoveConfig.from_json(json.dumps(values))


# --- Files --------------------------------------------------------------------------------------------


def test_tokens_keep_their_map(model: DoveModel, tmp_path: Path) -> None:
    tokens = model.encode(photos(3), query="the dog", return_relevance=True)
    tokens.save(tmp_path / "t.safetensors")
    read = DoveTokens.load(tmp_path / "t.safetensors")
    assert read.relevance is not None and torch.equal(read.relevance, tokens.relevance)
    assert tokens.relevance is not None
    assert torch.equal(DoveTokens.cat([tokens[2], tokens[0]]).relevance, tokens.relevance[[2, 0]])
    assert torch.equal(tokens.truncate(3).relevance, tokens.relevance)
    assert DoveTokens.cat([tokens, model.encode(photos(1))]).relevance is None


def test_a_model_comes_back_with_its_map(model: DoveModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = DoveModel.from_pretrained(tmp_path)
    same(again.encode(photos(2), query="the dog"), model.encode(photos(2), query="the dog"))


def test_a_file_holds_only_what_the_shipped_model_lacks(
    model: DoveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "shipped"
    linear_twin(model).save_pretrained(shipped)
    monkeypatch.setattr(pretrained, "shipped_folder", lambda name: shipped if name == "base" else None)
    model.save_pretrained(tmp_path / "own", base="base")
    own = pretrained.read_weights(tmp_path / "own" / "model.safetensors")
    assert own and all(name.startswith("relevance.") for name in own)
    again = DoveModel.from_pretrained(tmp_path / "own")
    same(again.encode(photos(2), query="the dog"), model.encode(photos(2), query="the dog"))

    with pytest.raises(ValueError, match="'other' does not come with dove_ext"):
        model.save_pretrained(tmp_path / "own", base="other")
    micro().save_pretrained(shipped)
    with pytest.raises(CheckpointError, match="builds on another 'base'"):
        DoveModel.from_pretrained(tmp_path / "own")
    monkeypatch.setattr(pretrained, "shipped_folder", lambda name: None)
    with pytest.raises(CheckpointError, match="update it"):
        DoveModel.from_pretrained(tmp_path / "own")
