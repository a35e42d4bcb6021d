"""Tests against SGLang's released wheel, unpacked and found by PYTHONPATH; elsewhere none is collected.

    pip download --no-deps sglang==0.5.23 && unzip sglang-*.whl -d wheel
    PYTHONPATH=wheel python -m pytest tests/sglang

The wheel's source is all that test_names needs; test_classes imports from it, so it wants what SGLang
imports itself, and is skipped without.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

collect_ignore_glob = ["test_*.py"] if find_spec("sglang") is None else []

if not collect_ignore_glob:  # SGLang reads these when it is imported
    os.environ["SGLANG_EXTERNAL_MODEL_PACKAGE"] = "dove_vlm.serving.sglang.models"
    os.environ["SGLANG_EXTERNAL_MM_PROCESSOR_PACKAGE"] = "dove_vlm.serving.sglang.processors"
    os.environ["SGLANG_EXTERNAL_MM_MODEL_ARCH"] = "DoveLlavaForConditionalGeneration"
