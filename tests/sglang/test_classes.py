"""The adapter between SGLang's own classes, on the CPU: they find it, and read what transformers reads."""

from __future__ import annotations

import asyncio
from array import array
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import dove_vlm
from dove_vlm.serving.prompt_embeds import prompt_embeds
from dove_vlm.serving.sglang.requests import precomputed_embedding
from tests.vlm.small import PROMPTS, TEMPLATE, encoder, images, model, tokenizer

WANTS = "SGLang's own requirements are not installed"
manager = pytest.importorskip("sglang.srt.managers.tokenizer_manager", reason=WANTS, exc_type=ImportError)

NAME = "DoveLlavaForConditionalGeneration"


def pil(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def wide() -> Image.Image:
    return pil(torch.cat(images(3), dim=-1))


class Words(nn.Module):
    """In place of SGLang's language model, which wants a GPU: what is asked of it."""

    def __init__(self, config: Any, quant_config: Any = None, prefix: str = "") -> None:
        super().__init__()
        self.config, self.prefix = config, prefix
        self.loaded: dict[str, Tensor] = {}

    def load_weights(self, weights: Any) -> None:
        self.loaded.update(weights)


class Served:
    """A saved model as SGLang's two processes have it, and as transformers has it."""

    def __init__(self, folder: Path) -> None:
        from sglang.srt.configs.model_config import ModelConfig
        from sglang.srt.managers.multimodal_processor import get_mm_processor, import_processors
        from sglang.srt.models.registry import ModelRegistry
        from sglang.srt.runtime_context import publish
        from sglang.srt.server_args import ServerArgs

        self.vlm = model(tile_separators=True)
        self.reference = dove_vlm.DoveLlavaProcessor(
            dove_vlm.DoveImageProcessor(encoder()), tokenizer(), chat_template=TEMPLATE
        )
        self.vlm.save_pretrained(folder)
        self.reference.save_pretrained(folder)
        args = ServerArgs(model_path=str(folder), device="cpu", dtype="float32")
        args.resolve_once()
        publish(args, role="tokenizer")
        config = ModelConfig.from_server_args(args)
        assert config.is_multimodal
        import_processors("dove_vlm.serving.sglang.processors", overwrite=True)
        self.processor = get_mm_processor(
            config.hf_config, args, manager.get_processor_wrapper(), "default", model_config=config
        )
        kind, _ = ModelRegistry.resolve_model_cls([NAME])
        resolve = ModelRegistry.resolve_model_cls
        try:
            ModelRegistry.resolve_model_cls = lambda named: (Words, named[0])
            self.model = kind(config.hf_config, prefix="")
        finally:
            ModelRegistry.resolve_model_cls = resolve
        self.model.load_weights(self.vlm.state_dict().items())

    def ask(self, text: Any, pictures: list[Any], **options: Any) -> Any:
        """What the processor makes of a request."""
        from sglang.srt.managers.io_struct import GenerateReqInput

        ids = self.processor._tokenizer(text)["input_ids"] if isinstance(text, str) else text
        request = GenerateReqInput(input_ids=ids, image_data=pictures, mm_processor_kwargs=options or None)
        return asyncio.run(
            self.processor.process_mm_data_async(
                image_data=pictures,
                audio_data=None,
                input_text=ids,
                request_obj=request,
                max_req_input_len=999,
            )
        )

    @torch.no_grad()
    def read(self, outs: list[Any], prefix: int = 0, length: int | None = None) -> list[Tensor]:
        """Rows that SGLang would hand to the language model, of a chunk of each prompt, all in one batch."""
        from sglang.srt.managers.mm_utils import embed_mm_inputs
        from sglang.srt.managers.schedule_batch import Modality, MultimodalInputs

        inputs = [MultimodalInputs.from_processor_output(out) for out in outs]
        padded = [
            torch.tensor(list(self.model.pad_input_ids(array("q", out.input_ids), one)))
            for out, one in zip(outs, inputs, strict=True)
        ]
        chunks = [ids[prefix : None if length is None else prefix + length] for ids in padded]
        rows, _ = embed_mm_inputs(
            mm_inputs_list=inputs,
            extend_prefix_lens=[prefix] * len(outs),
            extend_seq_lens=[len(chunk) for chunk in chunks],
            input_ids=torch.cat(chunks),
            input_embedding=self.vlm.get_input_embeddings(),
            data_embedding_func_mapping={Modality.IMAGE: self.model.get_image_feature},
        )
        return list(rows.split([len(chunk) for chunk in chunks]))

    def expected(self, text: str, pictures: list[Any], **options: Any) -> tuple[list[int], Tensor]:
        made = self.reference(images=pictures, text=text, return_tensors="pt", **options)
        return made["input_ids"][0].tolist(), prompt_embeds(self.vlm, made)[0]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    from sglang.srt.managers.mm_schedule import init_mm_embedding_cache

    init_mm_embedding_cache(2**20)
    return Served(tmp_path_factory.mktemp("served"))


def test_sglang_finds_model_and_processor(served: Served) -> None:
    for found, kind in ((served.model, "models"), (served.processor, "processors")):
        assert type(found).__module__ == f"dove_vlm.serving.sglang.{kind}.dove"
    assert type(served.model).__name__ == NAME
    words = served.model.language_model
    assert words.prefix == "language_model" and words.config.model_type == "llama"


def test_weights(served: Served) -> None:
    state = served.vlm.state_dict()
    assert set(served.model.language_model.loaded) == {
        name.removeprefix("language_model.") for name in state if name.startswith("language_model.")
    }
    for name, weight in served.model.named_parameters():
        assert torch.equal(weight, state[name]), name
    assert served.model.tile_separators is not None


CASES: list[tuple[str, list[int], dict[str, Any]]] = [
    (PROMPTS[0], [0], {}),
    (PROMPTS[0], [1], {"num_tokens": 3}),
    (PROMPTS[1], [0, 2], {}),
    (PROMPTS[1], [3, 1], {"tiles": 4, "max_tokens": 30}),
    ("<s> <image> <image>", [3, 3], {"tiles": 4}),
]


def test_the_language_model_reads_what_it_does_in_transformers(served: Served) -> None:
    pictures = [*map(pil, images(3)), wide()]
    outs, expected = [], []
    for text, numbers, options in CASES:
        chosen = [pictures[i] for i in numbers]
        outs.append(served.ask(text, chosen, **options))
        expected.append(served.expected(text, chosen, **options))
    for rows, out, (ids, want) in zip(served.read(outs), outs, expected, strict=True):
        assert out.input_ids == ids
        torch.testing.assert_close(rows, want, atol=1e-5, rtol=1e-5)
    for start, length in ((0, 9), (4, 6)):  # chunks that are shorter than a picture
        for rows, (_, want) in zip(served.read(outs, start, length), expected, strict=True):
            torch.testing.assert_close(rows, want[start : start + length], atol=1e-5, rtol=1e-5)


def test_rows_of_a_client_beside_pictures(served: Served) -> None:
    pictures = [wide(), pil(images(1)[0])]
    made = served.reference(images=pictures, text=PROMPTS[1], tiles=4, return_tensors="pt")
    request = precomputed_embedding(served.vlm, made)
    item = request["image_data"][0]
    as_json = {**item, "feature": item["feature"].tolist()}
    outs = [served.ask(request["input_ids"], [one]) for one in (item, as_json)]
    outs.append(served.ask(PROMPTS[1], pictures, tiles=4))
    want = prompt_embeds(served.vlm, made)[0]
    for out, rows in zip(outs, served.read(outs), strict=True):
        assert out.input_ids == made["input_ids"][0].tolist()
        torch.testing.assert_close(rows, want, atol=1e-5, rtol=1e-5)


def test_a_wide_and_a_tall_picture_of_the_same_tiles_are_two(served: Served) -> None:
    """To SGLang's caches, which know a picture by a number."""
    from dove_vlm.serving.sglang.processors.dove import _item

    tokens = torch.ones(3, 8)
    wide_ends, tall_ends = (torch.tensor([0, 2, 0, kind, 0, 2], dtype=torch.int8) for kind in (1, 2))
    first, second, again = (_item(tokens, (tokens, ends)) for ends in (wide_ends, tall_ends, wide_ends))
    assert first.hash != second.hash and first.pad_values != second.pad_values
    assert again.hash == first.hash and again.pad_values == first.pad_values
    bare, other = (_item(tokens, (tokens,)) for tokens in (tokens, tokens + 1))
    assert bare.hash != other.hash
    assert len({item.hash for item in served.ask(PROMPTS[1], [wide(), wide()]).mm_items}) == 1


@pytest.mark.parametrize(
    ("text", "numbers", "options", "sentence"),
    [
        (PROMPTS[0], [0], {"num_tokens": 0}, "num_tokens must be between 1 and 64, got 0"),
        (PROMPTS[0], [0], {"tiles": 0}, "tiles must be a whole number from 1 to 4096"),
        (PROMPTS[0], [0], {"device": "cuda"}, "an image has no option 'device' here"),
        (PROMPTS[1], [0], {}, "the prompt has 2 <image> for 1 images"),
        (PROMPTS[2], [0], {}, "the prompt has 0 <image> for 1 images"),
    ],
)
def test_refusals(served: Served, text: str, numbers: list[int], options: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        served.ask(text, [pil(images(1)[i]) for i in numbers], **options)


def test_rows_that_do_not_fit(served: Served) -> None:
    made = served.reference(images=[pil(images(1)[0])], text=PROMPTS[0], return_tensors="pt")
    request = precomputed_embedding(served.vlm, made)
    item, n = request["image_data"][0], len(request["image_data"][0]["feature"])
    wrong: list[Any] = [
        {**item, "feature": item["feature"][1:]},
        {**item, "feature": item["feature"][:, 1:]},
        {**item, "feature": None},
        {**item, "feature": "rows"},
        {**item, "counts": [n - 1]},
        {**item, "counts": None},
        {**item, "counts": [n, 0]},
    ]
    for one in wrong:
        with pytest.raises(ValueError, match=rf"precomputed_embedding needs feature \[{n}, 64\]"):
            served.ask(request["input_ids"], [one])
    with pytest.raises(ValueError, match="must pass exactly one item"):
        served.ask(request["input_ids"], [item, item])
    with pytest.raises(ValueError, match="this model takes pictures or precomputed_embedding"):
        served.ask(request["input_ids"], [{**item, "format": "processor_output"}])
    places = [i for i, x in enumerate(request["input_ids"]) if x == served.vlm.config.image_token_id]
    torn = [*request["input_ids"]]
    torn.insert(places[1], 1)
    with pytest.raises(ValueError, match="does not stand in one piece"):
        served.ask(torn, [item])
