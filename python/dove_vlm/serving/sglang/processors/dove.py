"""Pictures to tokens in the process that takes requests: counted and encoded in one pass, and never again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import sglang.srt.models.registry  # noqa: F401 (it imports our model itself, and must find it whole)
import torch
from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem, MultimodalProcessorOutput
from sglang.srt.multimodal.modality import MultimodalInputFormat
from sglang.srt.multimodal.processors.base_processor import BaseMultimodalProcessor, MultimodalSpecialTokens
from torch import Tensor

from dove_vlm.serving.requests import check_prompt, image_options, rows_of_images
from dove_vlm.serving.sglang.models.dove import DoveLlavaForConditionalGeneration


class DoveMultimodalProcessor(BaseMultimodalProcessor):
    """`DoveImageProcessor` as SGLang calls it.

    Args:
        hf_config: a `DoveLlavaConfig`.
        server_args: of SGLang.
        _processor: a `DoveLlavaProcessor`.
        *args: of SGLang.
        **kwargs: likewise.

    Raises:
        ValueError: if something is wrong with the server's own options (`--mm-process-config`, "image").
    """

    models = [DoveLlavaForConditionalGeneration]  # noqa: RUF012 (SGLang's way)
    gpu_image_decode = False
    prefer_tokenized_input = True
    supports_mm_processor_concurrency = False  # copies would hold an encoder each

    def __init__(self, hf_config: Any, server_args: Any, _processor: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(hf_config, server_args, _processor, *args, **kwargs)
        self.mm_tokens = MultimodalSpecialTokens(
            image_token=_processor.image_token, image_token_id=hf_config.image_token_id
        ).build(_processor)
        self._options({})

    def _options(self, request: Any) -> dict[str, Any]:
        return image_options(
            request,
            self.image_config,
            self.hf_config.vision_config.max_image_tokens,
            tile_separators=self.hf_config.tile_separators,
            tiles=self._processor.image_processor.tiles,
        )

    async def process_mm_data_async(
        self, image_data: Any, input_text: Any, request_obj: Any, *args: Any, **kwargs: Any
    ) -> MultimodalProcessorOutput:
        """What SGLang's scheduler gets of a request with pictures.

        Args:
            image_data: pictures, as SGLang takes them; or what `precomputed_embedding` made of all of them.
            input_text: the prompt, or its ids.
            request_obj: with `mm_processor_kwargs` (`requests.image_options`).
            *args: of SGLang.
            **kwargs: likewise.

        Raises:
            ValueError: in one sentence, if something is wrong with the request.
        """
        for name in ("video_data", "audio_data"):
            if getattr(request_obj, name, None):
                raise ValueError(f"this model takes no {name}; leave it out")
        self.validate_mm_data(image_data)
        ids = input_text if isinstance(input_text, list) else self._tokenizer(input_text)["input_ids"]
        place = self.mm_tokens.image_token_id
        if (form := self._get_preprocessed_input_format(image_data[0])) is not None:
            items = self._made_before(form, image_data[0], ids.count(place))
        else:
            check_prompt(ids.count(place), len(image_data), str(self.mm_tokens.image_token))
            items = await self._encoded(image_data, getattr(request_obj, "mm_processor_kwargs", None) or {})
            counts = iter([len(item.image_tile_ends) for item in items])
            ids = [x for token in ids for x in [token] * (next(counts) if token == place else 1)]
        places, start = [i for i, token in enumerate(ids) if token == place], 0
        for item in items:
            count = item.model_specific_data.pop("count", None) or len(item.image_tile_ends)
            first, last = places[start], places[start + count - 1]
            if last - first != count - 1:
                raise ValueError(
                    f"a picture of {count} placeholders does not stand in one piece; pass ids and rows "
                    "of one call of precomputed_embedding"
                )
            item.offsets = [(first, last)]
            start += count
        return MultimodalProcessorOutput(input_ids=list(ids), mm_items=items, im_token_id=place)

    async def _encoded(self, image_data: Any, request: Any) -> list[MultimodalDataItem]:
        options = self._options(request)
        loaded = await self.fast_load_mm_data(
            prompt="", multimodal_tokens=self.mm_tokens, image_data=image_data
        )
        made = self._processor.image_processor(loaded.images, return_tensors="pt", **options)
        counts, width = made["num_image_tokens"].tolist(), self.hf_config.vision_config.hidden_size
        rows, ends = rows_of_images(
            made["image_tokens"].cpu(), counts, made.get("image_tile_ends"), len(image_data), width
        )
        return [
            _item(part, (part, kinds), image_tile_ends=kinds) for part, kinds in zip(rows, ends, strict=True)
        ]

    def _made_before(self, form: Any, made: Any, places: int) -> list[MultimodalDataItem]:
        if form is not MultimodalInputFormat.PRECOMPUTED_EMBEDDING:
            raise ValueError(f"this model takes pictures or precomputed_embedding, got {made['format']!r}")
        width, counts = self.hf_config.text_config.hidden_size, made.get("counts")
        whole = isinstance(counts, list) and all(isinstance(n, int) and n > 0 for n in counts)
        try:
            rows = torch.as_tensor(made.get("feature"), dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError):  # no numbers, or rows of several widths
            rows = torch.zeros(0)
        if list(rows.shape) != [places, width] or not whole or sum(counts) != places:
            raise ValueError(
                f"precomputed_embedding needs feature [{places}, {width}], a row for each placeholder of the "
                f"prompt, and counts that sum to {places}, got {list(rows.shape)} and {counts!r}; pass what "
                "dove_vlm.serving.sglang.requests.precomputed_embedding made"
            )
        return [_item(part.clone(), (part,), count=len(part), format=form) for part in rows.split(counts)]


def _item(
    feature: Tensor, told_by: Sequence[Tensor], format: Any = MultimodalInputFormat.NORMAL, **data: Any
) -> MultimodalDataItem:
    """A picture, known to SGLang's caches by all that tells it from others.

    By its tokens alone it is not: a wide and a tall one of the same tiles differ in where rows end.
    """
    item = MultimodalDataItem(
        modality=Modality.IMAGE, feature=feature, format=format, model_specific_data=data
    )
    digest = hashlib.sha256()
    for part in told_by:
        digest.update(part.contiguous().view(torch.uint8).numpy().tobytes())
    item.set_identity(digest.digest())
    return item
