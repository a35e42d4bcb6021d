"""Pictures in tiles in a prompt: what stands where, and what the language model reads there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from dove_vlm import DoveDataCollator, DoveLlavaConfig
from dove_vlm.tiles import ROW, TILE, TOKEN, lay_out
from tests.models.micro import photos
from tests.vlm.small import WORDS, encoder, llama, model, processor

SIDE = 32  # of the micro model's pictures


def wide() -> torch.Tensor:
    """uint8 [3, 32, 80]: three tiles beside one another, and a thumbnail."""
    return torch.cat([*photos(2), photos(3)[2][..., :16]], dim=-1)


def tall() -> torch.Tensor:
    """uint8 [3, 56, 56]: two rows of two."""
    return torch.nn.functional.interpolate(photos(1)[:1].float(), (56, 56)).to(torch.uint8)[0]


def runs(ends: torch.Tensor) -> list[tuple[int, int]]:
    """Tokens of each tile, and what ends it."""
    found, count = [], 0
    for kind in ends.tolist():
        if kind == TOKEN:
            count += 1
        else:
            found.append((count, kind))
            count = 0
    assert count == 0
    return found


def test_a_picture_is_its_thumbnail_then_row_by_row_with_their_ends() -> None:
    pictures = [wide(), tall(), photos(1)[0]]
    found = processor(tiles=6).image_processor(pictures, return_tensors="pt")
    tokens = encoder().encode(pictures, tiles=6)
    lengths = tokens.lengths.tolist()
    assert len(lengths) == 4 + 5 + 1
    assert torch.equal(found["image_tokens"], tokens.tokens)
    ends = found["image_tile_ends"].split(found["num_image_tokens"].tolist())
    assert runs(ends[0]) == list(zip(lengths[:4], [ROW, TILE, TILE, ROW], strict=True))
    assert runs(ends[1]) == list(zip(lengths[4:9], [ROW, TILE, ROW, TILE, ROW], strict=True))
    assert runs(ends[2]) == [(lengths[9], ROW)]
    assert found["num_image_tokens"].sum() == len(tokens.tokens) + 10


def test_a_tile_that_was_left_out_keeps_its_place() -> None:
    tokens = encoder().encode([wide()], tiles=6)
    laid = lay_out(
        tokens[[0, 3, 1]]
    )  # thumbnail, third, first: the second is missing, and order does not matter
    a, b, _, d = tokens.lengths.tolist()
    assert runs(laid.ends) == [(a, ROW), (b, TILE), (0, TILE), (d, ROW)]
    assert torch.equal(laid.tokens.tokens, tokens[[0, 1, 3]].tokens)


def test_the_language_model_reads_tokens_and_ends_where_they_stand() -> None:
    made, vlm = processor(tiles=6), tiled_model()
    inputs = made(images=[wide()], text="<s> what is <image> ?", return_tensors="pt")
    at = inputs["input_ids"][0] == len(WORDS)
    assert at.sum() == inputs["num_image_tokens"].sum() == len(inputs["image_tile_ends"])
    read: list[torch.Tensor] = []
    vlm.language_model.register_forward_pre_hook(
        lambda _, __, kwargs: read.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        vlm(**inputs)
    rows, ends = read[0][0][at], inputs["image_tile_ends"]
    projected = vlm.multi_modal_projector(inputs["image_tokens"])
    torch.testing.assert_close(rows[ends == TOKEN], projected)
    torch.testing.assert_close(rows[ends == TILE], vlm.tile_separators.weight[:1].expand(2, -1))
    torch.testing.assert_close(rows[ends == ROW], vlm.tile_separators.weight[1:].expand(2, -1))


def tiled_model() -> Any:
    return model(tile_separators=True)


def test_all_ways_give_the_same() -> None:
    made, vlm = processor(tiles=6), tiled_model()
    prompts = ["<s> what is <image> ?", "<s> how many <image> in <image> ?", "<s> where is it ?"]
    pictures = [[wide()], [photos(1)[0], tall()], []]
    inputs = made(images=pictures, text=prompts, padding=True, return_tensors="pt")
    alone = [
        vlm.generate(
            **made(images=p or None, text=t, return_tensors="pt"), max_new_tokens=6, do_sample=False
        )[0, -6:]
        for p, t in zip(pictures, prompts, strict=True)
    ]
    together = vlm.generate(**inputs, max_new_tokens=6, do_sample=False)[:, -6:]
    assert torch.equal(together, torch.stack(alone))
    # Tokens that were made before; and given to the model as they are.
    tokens = encoder().encode([wide(), photos(1)[0], tall()], tiles=6)
    assert torch.equal(made(images=tokens, text=prompts, padding=True, return_tensors="pt")["input_ids"],
                       inputs["input_ids"])  # fmt: skip
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        want = vlm(**inputs).logits
        torch.testing.assert_close(vlm(**text, image_tokens=tokens).logits, want)
        packed = DoveDataCollator(made.tokenizer, packed=True)(
            [
                made(images=p or None, text=t, return_tensors="pt")
                for p, t in zip(pictures, prompts, strict=True)
            ]
        )
        flat = vlm(**packed).logits[0]
    torch.testing.assert_close(flat, want[inputs["attention_mask"].bool()], atol=1e-4, rtol=1e-4)


def test_whole_pictures_and_tiles_in_one_batch() -> None:
    vlm, collate = tiled_model(), DoveDataCollator(processor().tokenizer)
    rows = [
        processor(tiles=6)(images=[wide()], text="<s> what is <image> ?", return_tensors="pt"),
        processor()(images=[photos(1)[0]], text="<s> what is <image> ?", return_tensors="pt"),
    ]
    both = collate(rows)
    with torch.no_grad():
        for i, row in enumerate(rows):
            n = row["input_ids"].shape[1]
            want = vlm(**row).logits[0]
            torch.testing.assert_close(vlm(**both).logits[i, -n:], want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tiles", [None, 6])
def test_the_ends_are_learned_and_no_process_waits(tiles: int | None) -> None:
    made, vlm = processor(tiles=tiles), tiled_model().train()
    for pictures, text in (([wide()], "<s> what is <image> ?"), (None, "<s> what is it ?")):
        vlm.zero_grad()
        inputs = made(images=pictures, text=text, return_tensors="pt")
        vlm(**inputs, labels=inputs["input_ids"]).loss.backward()
        gradient = vlm.tile_separators.weight.grad
        assert gradient is not None
        assert bool(gradient.any()) == (tiles is not None and pictures is not None)


def test_saved_and_loaded_and_learned_later(tmp_path: Path) -> None:
    vlm, made = tiled_model(), processor(tiles=(1, 6))
    vlm.save_pretrained(tmp_path / "a"), made.save_pretrained(tmp_path / "a")
    again, asked = (
        AutoModelForImageTextToText.from_pretrained(tmp_path / "a"),
        AutoProcessor.from_pretrained(tmp_path / "a"),
    )
    inputs = made(images=[wide()], text="<s> what is <image> ?", return_tensors="pt")
    other = asked(images=[wide()], text="<s> what is <image> ?", return_tensors="pt")
    assert all(torch.equal(inputs[name], other[name]) for name in inputs)
    assert torch.equal(vlm(**inputs).logits, again(**other).logits)
    # One that was made without them gets new ones.
    model().save_pretrained(tmp_path / "b")
    grown = AutoModelForImageTextToText.from_pretrained(tmp_path / "b", tile_separators=True)
    assert 0.5 < grown.tile_separators.weight.std() * llama().config.hidden_size ** 0.5 < 2
    assert not DoveLlavaConfig().tile_separators


def test_a_budget_is_the_pictures() -> None:
    found = processor(tiles=6)(
        images=[wide()], text="<s> what is <image> ?", num_tokens=20, return_tensors="pt"
    )
    assert len(found["image_tokens"]) == 20
    assert found["num_image_tokens"].tolist() == [24]


def test_refusals() -> None:
    made, vlm = processor(), tiled_model()
    inputs = made(images=[wide()], text="<s> what is <image> ?", tiles=6, return_tensors="pt")
    with pytest.raises(ValueError, match="reads no tiles; leave tiles out, or make it with tile_separators"):
        model()(**inputs)
    with pytest.raises(ValueError, match="one for each of num_image_tokens"):
        vlm(**{**inputs, "image_tile_ends": inputs["image_tile_ends"][1:]})
    wrong = inputs["image_tile_ends"].clone()
    wrong[0] = 1
    with pytest.raises(ValueError, match="image_tile_ends tells of"):
        vlm(**{**inputs, "image_tile_ends": wrong})
    with pytest.raises(ValueError, match="num_image_tokens sums to"):
        vlm(**{k: v for k, v in inputs.items() if k != "image_tile_ends"})
    with pytest.raises(ValueError, match="fit says how a picture becomes square"):
        made(images=[wide()], text="<image>", tiles=6, fit="crop")
    with pytest.raises(ValueError, match="tower takes whole pictures"):
        made(images=[wide()], text="<image>", tiles=6, return_pixel_values=True)
    with pytest.raises(ValueError, match="tower takes whole pictures"):
        pixels = torch.zeros(1, 3, SIDE, SIDE)
        vlm.get_image_features(pixel_values=pixels, image_tile_ends=wrong)
    with pytest.raises(ValueError, match="tiles must be a whole number"):
        made(images=[wide()], text="<image>", tiles=0)
    for option in ({"tiles": 2}, {"drop_empty": True}):
        with pytest.raises(ValueError, match="comes too late for images that are tokens already"):
            made(images=encoder().encode([wide()]), text="<image>", **option)
    with pytest.raises(ValueError, match="drop_empty leaves out tiles; give tiles"):
        made(images=[wide()], text="<image>", drop_empty=True)
