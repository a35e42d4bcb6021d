"""DOVE models in lmms-eval: what its entry-point group `lmms_eval.models` finds.

    lmms-eval --model dove --model_args pretrained=runs/vlm/model,num_tokens=64 --tasks gqa --device cpu

Tested with the registry, base class and requests of lmms-eval 0.7.3; none of its tasks has been evaluated so.
"""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """The models that this package adds."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("dove", simple_class_path="dove_vlm.benchmarks.lmms_model.DoveLmms")
