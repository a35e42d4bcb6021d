"""Images of variable length in a language model: DOVE tokens for transformers (3.3, B.1, B.2).

    import dove_vlm                       # from here on transformers' Auto classes know the models

    processor = AutoProcessor.from_pretrained("folder")
    model = AutoModelForImageTextToText.from_pretrained("folder")
    inputs = processor(images=["photo.jpg"], text="<image> What is this?", return_tensors="pt")
    answer = model.generate(**inputs)

The encoder works in the processor, where it counts; the language model gets the tokens of that pass.
"""

from __future__ import annotations

from dove_vlm.versions import require_supported

require_supported()

from transformers import (  # noqa: E402 (after the version is known to do)
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from dove_vlm.collate import DoveDataCollator  # noqa: E402
from dove_vlm.configuration import DoveLlavaConfig, DoveVisionConfig  # noqa: E402
from dove_vlm.image_processor import DoveImageProcessor  # noqa: E402
from dove_vlm.modeling import DoveLlavaForConditionalGeneration  # noqa: E402
from dove_vlm.processor import DoveLlavaProcessor  # noqa: E402
from dove_vlm.vision import DoveVisionModel  # noqa: E402

__all__ = [
    "DoveDataCollator",
    "DoveImageProcessor",
    "DoveLlavaConfig",
    "DoveLlavaForConditionalGeneration",
    "DoveLlavaProcessor",
    "DoveVisionConfig",
    "DoveVisionModel",
]

for _config in (DoveVisionConfig, DoveLlavaConfig):
    AutoConfig.register(_config.model_type, _config)
    AutoImageProcessor.register(
        _config, image_processor_classes={"pil": DoveImageProcessor, "torchvision": DoveImageProcessor}
    )
AutoModel.register(DoveVisionConfig, DoveVisionModel)
AutoModelForImageTextToText.register(DoveLlavaConfig, DoveLlavaForConditionalGeneration)
AutoProcessor.register(DoveLlavaConfig, DoveLlavaProcessor)
