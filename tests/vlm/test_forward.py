"""What the language model sees of images, and where gradients go."""

from __future__ import annotations

import pytest
import torch

from dove_ext.models.dove import DoveModel
from dove_vlm import DoveVisionModel
from tests.models.micro import micro, stop_at_share
from tests.vlm.small import batch, encoder, images, llama, model, processor


def test_image_tokens_stand_in_the_place_of_their_placeholders() -> None:
    """Against the embeddings put together by hand, row by row."""
    vlm, made = model(), batch()
    embeds = vlm.get_input_embeddings()(made["input_ids"])
    rows = iter(vlm.multi_modal_projector(made["image_tokens"]))
    for b, row in enumerate(made["input_ids"].tolist()):
        for i, token in enumerate(row):
            if token == vlm.config.image_token_id:
                embeds[b, i] = next(rows)
    expected = vlm.language_model(inputs_embeds=embeds, attention_mask=made["attention_mask"]).logits
    assert torch.equal(vlm(**made).logits, expected)


def test_the_image_changes_the_answer_and_only_in_its_row() -> None:
    vlm, made = model(), batch()
    other = {**made, "image_tokens": made["image_tokens"].clone()}
    other["image_tokens"][: made["num_image_tokens"][0]] *= -1
    change = (vlm(**made).logits - vlm(**other).logits).abs().amax((1, 2))
    assert change[0] > 1e-2 and torch.equal(change[1:], torch.zeros(2))


def test_dove_tokens_go_straight_in() -> None:
    vlm, made = model(), batch()
    tokens = encoder().encode(images(3), fit="pad")
    text = {"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]}
    assert torch.equal(vlm(**text, image_tokens=tokens).logits, vlm(**made).logits)


def test_embeddings_in_place_of_ids() -> None:
    vlm, made = model(), batch()
    embeds = vlm.get_input_embeddings()(made["input_ids"])
    rest = {name: made[name] for name in ("attention_mask", "image_tokens", "num_image_tokens")}
    assert torch.equal(vlm(inputs_embeds=embeds, **rest).logits, vlm(**made).logits)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        vlm(**rest)


def test_loss_and_spared_logits() -> None:
    vlm, made = model(), batch()
    labels = made["input_ids"].masked_fill(made["attention_mask"] == 0, -100)
    whole = vlm(**made, labels=labels)
    expected = torch.nn.functional.cross_entropy(whole.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert torch.allclose(whole.loss, expected)
    assert torch.allclose(vlm(**made, logits_to_keep=1).logits, whole.logits[:, -1:], atol=1e-5)


def test_gradients_reach_the_connector_and_the_tokens() -> None:
    vlm, made = model(), batch()
    made["image_tokens"].requires_grad_()
    vlm(**made).logits[:, -1].sum().backward()
    assert made["image_tokens"].grad.abs().amax(1).gt(0).all()  # of every token, none lost on the way
    assert vlm.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in vlm.vision_tower.parameters())


@pytest.fixture
def tower() -> DoveModel:
    return stop_at_share(micro())


def test_pixels_give_the_same_and_a_gradient_into_the_encoder(tower: DoveModel) -> None:
    vlm = model(dove=tower)
    pixels = batch(return_pixel_values=True)
    out = vlm(**pixels)
    assert torch.allclose(out.logits, vlm(**batch()).logits, atol=2e-3)
    out.logits[:2, -1].sum().backward()
    assert tower.vqgan.encoder.conv_in.weight.grad.abs().sum() > 0
    assert tower.generator.from_latent.weight.grad.abs().sum() > 0


def test_the_tower_keeps_as_many_tokens_as_were_counted() -> None:
    """Also where it would count otherwise, as in another dtype near a threshold."""
    vision = DoveVisionModel.from_dove(encoder())
    pixels = processor().image_processor(images(2), return_tensors="pt", return_pixel_values=True)[
        "pixel_values"
    ]
    own = [len(part) for part in vision(pixels).pooler_output]
    assert own == encoder().encode(images(2)).lengths.tolist()
    assert [len(part) for part in vision(pixels, num_image_tokens=[own[0] + 1, 3]).pooler_output] == [
        own[0] + 1,
        3,
    ]


@pytest.mark.parametrize("trained", ["connector", "encoder"])
def test_a_batch_without_images_has_gradients_of_zeros(trained: str, tower: DoveModel) -> None:
    """Processes that train together wait for the gradients of all: text-only rows must not lack them."""
    vlm = model(dove=tower).train()
    vlm.vision_tower.requires_grad_(trained == "encoder")
    text = processor()(text="<s> what is this ?", return_tensors="pt")
    out = vlm(**text)
    assert torch.equal(out.logits, vlm.eval()(**text).logits)
    out.logits.sum().backward()
    parts = [
        vlm.multi_modal_projector,
        *([vlm.vision_tower.dove.generator.stack] if trained == "encoder" else []),
    ]
    for parameter in (p for part in parts for p in part.parameters()):
        assert parameter.grad is not None and not parameter.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_dtypes_and_attention(dtype: torch.dtype, attention: str) -> None:
    vlm = model().to(dtype)
    vlm.set_attn_implementation(attention)
    made = batch()  # its tokens are float32 in either case
    logits, expected = vlm(**made).logits, model()(**made).logits
    assert logits.dtype == dtype
    off = (logits.float() - expected).abs()[made["attention_mask"] == 1]
    assert off.max() < (1e-4 if dtype == torch.float32 else 1.0)


def test_the_attention_of_a_language_model_is_kept() -> None:
    """transformers forgets it where a configuration is made part of another, and then masks nothing."""
    lm = llama()
    chosen = lm.config._attn_implementation
    assert chosen is not None
    assert model(lm).language_model.config._attn_implementation == chosen


def test_activations_can_be_recomputed() -> None:
    vlm = model().train()
    vlm.gradient_checkpointing_enable()
    made = batch()
    vlm(**made, labels=made["input_ids"]).loss.backward()
    recomputed = vlm.multi_modal_projector.linear_1.weight.grad
    plain = model()
    plain(**made, labels=made["input_ids"]).loss.backward()
    assert torch.allclose(recomputed, plain.multi_modal_projector.linear_1.weight.grad, atol=1e-5)
