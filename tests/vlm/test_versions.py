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
