"""Counts and tokens are of one pass, and a request's limits are kept."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dove_ext import CheckpointError, ImageError, QueryError
from dove_vlm import DoveImageProcessor, DoveVisionModel
from tests.models.micro import asked, photos
from tests.vlm.small import encoder, images, processor


def call(pictures: Any, **options: Any) -> Any:
    return DoveImageProcessor(encoder())(pictures, return_tensors="pt", **options)


def test_tokens_are_those_of_the_library_packed_as_it_packs_them() -> None:
    made, tokens = call(images(3)), encoder().encode(images(3), fit="pad")
    assert torch.equal(made["image_tokens"], tokens.tokens)
    assert torch.equal(made["num_image_tokens"], tokens.lengths.long())
    assert len(set(tokens.lengths.tolist())) == 3


def test_the_encoder_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two passes can differ by a token near a threshold: nothing may count in one and encode in another."""
    calls = []
    condition = encoder().condition
    monkeypatch.setattr(encoder(), "condition", lambda *args: calls.append(1) or condition(*args))
    call(images(2))
    assert calls == [1]


@pytest.mark.parametrize(
    "options",
    [{"num_tokens": 5}, {"min_tokens": 9}, {"max_tokens": 6}, {"eos_threshold": 0.3}, {"token_budget": 40}],
)
def test_a_request_chooses_lengths(options: dict[str, Any]) -> None:
    expected = encoder().encode(images(3), fit="pad", **options)
    assert call(images(3), **options)["num_image_tokens"].tolist() == expected.lengths.tolist()


def test_a_request_replaces_the_processors_own_limits() -> None:
    processor = DoveImageProcessor(encoder(), max_tokens=3)
    assert processor(images(2), return_tensors="pt")["num_image_tokens"].max() == 3
    assert processor(images(2), return_tensors="pt", num_tokens=7)["num_image_tokens"].tolist() == [7, 7]


def test_target_psnr() -> None:
    expected = encoder().encode(images(2), fit="pad", target_psnr=9.0)
    assert call(images(2), target_psnr=9.0)["num_image_tokens"].tolist() == expected.lengths.tolist()


def test_images_of_all_kinds(tmp_path: Path) -> None:
    tensor = images(1)[0]
    array = tensor.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array)
    picture.save(tmp_path / "a.png")
    expected = call(tensor)["image_tokens"]
    for kind in (
        array,
        picture,
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        [picture],
        [[], [array]],
        tensor[None],
    ):
        assert torch.equal(call(kind)["image_tokens"], expected)
    both = call([np.stack([array, array])[0], picture])
    assert both["num_image_tokens"].tolist() == [len(expected)] * 2


def test_a_picture_behind_a_url_is_read_as_a_file_is(tmp_path: Path) -> None:
    """White where it is transparent, and of 16 bits the upper ones."""
    made = processor().image_processor
    glass = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    glass.paste((0, 0, 255, 255), (8, 8, 24, 24))
    deep = Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32) * 60)
    for number, picture in enumerate((glass, deep)):
        path = tmp_path / f"{number}.png"
        picture.save(path)
        url = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
        ours, theirs = (made([x], num_tokens=9)["image_tokens"] for x in (url, str(path)))
        assert torch.equal(ours, theirs)
    for url, why in (
        ("data:image/png;base64,QUJD", "image"),
        ("http://127.0.0.1:9/", "cannot be fetched"),
    ):
        with pytest.raises(ImageError, match=why):
            made([url])


def test_all_of_a_picture_that_is_not_square_is_seen() -> None:
    wide = torch.zeros(3, 32, 64, dtype=torch.uint8)
    wide[:, :, 56:] = 255
    assert torch.equal(call(wide)["image_tokens"], encoder().encode(wide, fit="pad").tokens)
    assert torch.equal(call(wide, fit="crop")["image_tokens"], encoder().encode(wide).tokens)


def test_tokens_made_before_are_passed_on() -> None:
    tokens = encoder().encode(images(3))
    processor = DoveImageProcessor(None)
    assert torch.equal(processor(tokens, return_tensors="pt")["image_tokens"], tokens.tokens)
    short = processor(tokens, max_tokens=2, return_tensors="pt")
    assert short["num_image_tokens"].tolist() == [2, 2, 2]
    for late in ("num_tokens", "min_tokens"):
        with pytest.raises(ValueError, match=f"{late} comes too late"):
            processor(tokens, **{late: 2})


def test_pixels_in_place_of_tokens_have_the_same_counts() -> None:
    made = call(images(3), return_pixel_values=True)
    assert set(made) == {"pixel_values", "num_image_tokens"}
    assert made["num_image_tokens"].tolist() == call(images(3))["num_image_tokens"].tolist()
    assert torch.allclose(made["pixel_values"], photos(3).float() / 127.5 - 1, atol=1e-6)


def test_a_query_changes_the_tokens(tmp_path: Path) -> None:
    dove = asked(tmp_path)
    processor = DoveImageProcessor(dove)
    made = processor(images(2), query=["the dog", "the table"], num_tokens=4, return_tensors="pt")
    expected = dove.encode(images(2), query=["the dog", "the table"], num_tokens=4, fit="pad")
    assert torch.equal(made["image_tokens"], expected.tokens)
    assert not torch.equal(
        made["image_tokens"], processor(images(2), num_tokens=4, return_tensors="pt")["image_tokens"]
    )
    own = DoveImageProcessor(dove, query="the dog")(images(1), num_tokens=4, return_tensors="pt")
    assert torch.allclose(own["image_tokens"], expected.tokens[:4], atol=1e-3)
    with pytest.raises(ValueError, match="takes no query"):
        processor(images(1), query="the dog", return_pixel_values=True)
    with pytest.raises(QueryError, match="no weights for text queries"):
        call(images(1), query="the dog")


def test_refusals() -> None:
    with pytest.raises(ValueError, match="no option 'size'"):
        call(images(1), size={"height": 32, "width": 32})
    with pytest.raises(ValueError, match="there is no image"):
        call([])
    with pytest.raises(ValueError, match="num_tokens decides"):
        call(images(1), num_tokens=3, max_tokens=3)
    with pytest.raises(CheckpointError, match="there is no encoder"):
        DoveImageProcessor(None)(images(1))
    with pytest.raises(CheckpointError, match="no model at 'dove-tinny'"):
        DoveImageProcessor("dove-tinny")(images(1))


def test_settings_are_saved_and_weights_are_not(tmp_path: Path) -> None:
    processor = DoveImageProcessor("dove-tiny", min_tokens=9, max_tokens=9, fit="crop")
    processor.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["preprocessor_config.json"]
    again = DoveImageProcessor.from_pretrained(tmp_path)
    assert json.loads(again.to_json_string()) == json.loads(processor.to_json_string())
    assert again(images(1), return_tensors="pt")["num_image_tokens"].tolist() == [9]  # by its name


def test_the_tower_beside_it_is_its_encoder(tmp_path: Path) -> None:
    DoveImageProcessor("dove-tiny").save_pretrained(tmp_path)
    DoveVisionModel.from_dove(encoder()).save_pretrained(tmp_path)
    again = DoveImageProcessor.from_pretrained(tmp_path)
    assert torch.equal(again(images(2), return_tensors="pt")["image_tokens"], call(images(2))["image_tokens"])


def test_copies_share_the_encoder() -> None:
    import copy

    processor = DoveImageProcessor(encoder())
    assert copy.deepcopy(processor).encoder is encoder()
