"""What is said where transformers, or what stands beside it, cannot be used."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dove_vlm import versions


def test_an_old_transformers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    versions.require_supported()
    monkeypatch.setattr(versions.transformers, "__version__", "5.18.3.dev0")
    assert versions.version() == (5, 18)
    with pytest.raises(ImportError, match=r"needs transformers 5\.19 or newer, here is 5\.18\.3\.dev0"):
        versions.require_supported()


def test_a_torchvision_of_another_torch_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As PyPI's is beside a CPU build of torch: transformers' own words name neither."""
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"torchvision does not fit this torch \(operator torchvision::nms"):
        versions.require_supported()


def test_chunks_are_refused_where_they_would_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever version is here; what they give where they are right is in test_generate.py."""
    monkeypatch.setattr(versions.transformers, "__version__", "5.22.2")
    versions.refuse_chunks(None, {})
    with pytest.raises(ValueError, match=r"needs transformers 5\.23 or newer"):
        versions.refuse_chunks(None, {"prefill_chunk_size": 7})
    monkeypatch.setattr(versions.transformers, "__version__", "5.23.0")
    versions.refuse_chunks(None, {"prefill_chunk_size": 7})
