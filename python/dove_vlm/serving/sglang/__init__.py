"""SGLang's model and processor of a saved `DoveLlavaForConditionalGeneration`, and requests of rows.

    export SGLANG_EXTERNAL_MODEL_PACKAGE=dove_vlm.serving.sglang.models
    export SGLANG_EXTERNAL_MM_PROCESSOR_PACKAGE=dove_vlm.serving.sglang.processors
    export SGLANG_EXTERNAL_MM_MODEL_ARCH=DoveLlavaForConditionalGeneration
    sglang serve --model-path out/vlm/model

Written against the source of SGLang 0.5.23 and tested with its own classes; no server has run it
(docs/deploy.md). Pictures are encoded and counted once, in the process that takes requests (`processors`);
the scheduler gets their tokens (`models`).
"""

from __future__ import annotations


def register() -> None:
    """SGLang's plugin (entry point `sglang.srt.plugins`).

    With this package `dove_vlm` was imported, and so transformers knows the model's configuration, which
    SGLang reads before it looks for the model.
    """
