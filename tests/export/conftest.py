"""What takes minutes, or packages of its own, is collected where `make test-export` has put these."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore = [] if find_spec("onnxscript") else ["test_onnx.py", "test_compiled.py"]
