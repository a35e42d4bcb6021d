"""Greedy answers are the same alone, in batches, with beams, repeated and in chunks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from dove_vlm.versions import SLICES_FEATURES, version
from tests.vlm.small import PROMPTS, TEMPLATE, batch, encoder, images, model, processor

NEW = 6


def answers(vlm: Any, made: Any, **options: Any) -> list[list[int]]:
    out = vlm.generate(**made, max_new_tokens=NEW, do_sample=False, **options)
    return out[:, made["input_ids"].shape[1] :].tolist()


def many(count: int) -> tuple[list[str], list[list[torch.Tensor]]]:
    """Prompts with 1, 2 and no images in turn, and the images."""
    pictures = iter(images(count * 2))
    kinds = [i % 3 for i in range(count)]
    return [PROMPTS[kind] for kind in kinds], [
        [next(pictures) for _ in range((1, 2, 0)[kind])] for kind in kinds
    ]


def test_greedy_answers_do_not_depend_on_the_batch() -> None:
    vlm, made = model(), processor()
    text, pictures = many(16)
    found = {}
    for size in (1, 2, 16):
        found[size] = []
        for i in range(0, 16, size):
            rows = made(
                images=pictures[i : i + size], text=text[i : i + size], padding=True, return_tensors="pt"
            )
            found[size] += answers(vlm, rows)
    assert found[1] == found[2] == found[16]
    assert len({tuple(answer) for answer in found[1]}) > 8  # they depend on prompt and picture


def test_they_are_those_of_the_whole_sequence() -> None:
    """No image is lost with the cache: each word is the arg-max of a forward over all before it."""
    vlm, made = model(), batch()
    never = [vlm.config.image_token_id]  # a random model might say it
    out = vlm.generate(**made, max_new_tokens=NEW, do_sample=False, suppress_tokens=never)
    mask = torch.cat([made["attention_mask"], torch.ones(3, NEW, dtype=torch.int64)], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    rest = {name: made[name] for name in ("image_tokens", "num_image_tokens")}
    logits = vlm(input_ids=out, attention_mask=mask, position_ids=positions, **rest).logits
    assert logits[:, -NEW - 1 : -1, : never[0]].argmax(-1).tolist() == out[:, -NEW:].tolist()


def test_a_further_turn_with_a_cache() -> None:
    """Pictures of earlier turns are in the cache; a new one stands where it belongs."""
    vlm, made = model(), processor()
    old, new, _ = images(3)
    for first, second in ((old, new), (new, old)):
        asked = made(images=[first], text=PROMPTS[0], return_tensors="pt")
        said = vlm.generate(**asked, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
        both = made(
            images=[first, second], text=f"{PROMPTS[0]} and <image> what is it ?", return_tensors="pt"
        )
        more = both["input_ids"][:, asked["input_ids"].shape[1] :]
        ids = torch.cat([said.sequences, more], 1)
        turn = {**both, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        assert answers(vlm, turn, past_key_values=said.past_key_values) == answers(vlm, turn)


def test_no_answer_holds_a_placeholder() -> None:
    """It would have no image; without a cache it would even be looked for."""
    vlm, made = model(), batch()
    place = vlm.config.image_token_id
    with torch.no_grad():
        vlm.get_output_embeddings().weight[place] = 50 * vlm.get_output_embeddings().weight.mean(0)
    for cached in (True, False):
        assert place not in torch.tensor(answers(vlm, made, use_cache=cached))


def test_beams_and_repeated_answers() -> None:
    vlm, made = model(), processor()
    together = vlm.generate(
        **batch(), max_new_tokens=NEW, do_sample=False, num_beams=3, num_return_sequences=2
    )
    a, b, c = images(3)
    alone = []
    for text, pictures in zip(PROMPTS, ([a], [b, c], []), strict=True):
        one = made(images=pictures or None, text=text, return_tensors="pt")
        out = vlm.generate(**one, max_new_tokens=NEW, do_sample=False, num_beams=3, num_return_sequences=2)
        alone += out[:, -NEW:].tolist()
    assert together[:, -NEW:].tolist() == alone
    torch.manual_seed(1)
    drawn = vlm.generate(**batch(), max_new_tokens=NEW, do_sample=True, num_return_sequences=3)
    assert drawn.shape[0] == 9


def test_a_callers_features_stay_as_they_are() -> None:
    """transformers repeats them in place for beams."""
    vlm, made = model(), batch()
    features = vlm.get_image_features(
        image_tokens=made["image_tokens"], num_image_tokens=made["num_image_tokens"]
    )
    own = {"image": features}
    text = {"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]}
    first = answers(vlm, text, num_return_sequences=2, num_beams=2, mm_encoder_outputs=own)
    assert len(features.pooler_output) == 3
    assert answers(vlm, text, num_return_sequences=2, num_beams=2, mm_encoder_outputs=own) == first


def test_all_ways_to_pass_images_give_the_same() -> None:
    vlm, made = model(), batch()
    expected = answers(vlm, made)
    text = {"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]}
    assert answers(vlm, text, image_tokens=encoder().encode(images(3), fit="pad")) == expected
    assert answers(vlm, batch(return_pixel_values=True)) == expected
    out = vlm.generate(
        made["input_ids"],
        attention_mask=made["attention_mask"],
        image_tokens=made["image_tokens"],
        num_image_tokens=made["num_image_tokens"],
        max_new_tokens=NEW,
        do_sample=False,
    )
    assert out[:, -NEW:].tolist() == expected
    embeds = vlm.get_input_embeddings()(made["input_ids"])
    rest = {name: made[name] for name in ("attention_mask", "image_tokens", "num_image_tokens")}
    assert (
        vlm.generate(inputs_embeds=embeds, **rest, max_new_tokens=NEW, do_sample=False).tolist() == expected
    )


@pytest.mark.parametrize("size", [5, 32])
def test_prefill_in_chunks(size: int) -> None:
    vlm = model()
    if version() >= SLICES_FEATURES:
        assert answers(vlm, batch(), prefill_chunk_size=size) == answers(vlm, batch())
        return
    with pytest.raises(ValueError, match=r"needs transformers 5\.23"):
        answers(vlm, batch(), prefill_chunk_size=size)
    vlm.generation_config.prefill_chunk_size = size
    with pytest.raises(ValueError, match=r"needs transformers 5\.23"):
        answers(vlm, batch())
    text = processor()(text=PROMPTS[2], return_tensors="pt")
    assert len(answers(vlm, text)) == 1  # nothing is wrong without images


def test_features_that_do_not_fit_end_before_the_first_word() -> None:
    vlm, made = model(), batch()
    features = vlm.get_image_features(
        image_tokens=made["image_tokens"], num_image_tokens=made["num_image_tokens"]
    )
    fewer = BaseModelOutputWithPooling(pooler_output=features.pooler_output[:2])
    text = {"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]}
    with pytest.raises(ValueError, match=r"row 1 has .* placeholders for which there is no image"):
        vlm.generate(**text, mm_encoder_outputs={"image": fewer}, max_new_tokens=1)


def test_pipeline() -> None:
    from transformers import pipeline

    made = processor()
    made.chat_template = TEMPLATE
    from PIL import Image

    picture = Image.fromarray(images(1)[0].permute(1, 2, 0).numpy())
    ask = pipeline("image-text-to-text", model=model(), processor=made, device="cpu")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "what is this ?"}]
    answer = ask(text=[{"role": "user", "content": content}], max_new_tokens=3, return_full_text=False)
    assert isinstance(answer[0]["generated_text"], str)
