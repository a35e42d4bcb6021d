"""Graphs in ONNX Runtime give what the library gives, for any batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch

from dove_ext.export import export
from tests.export.test_graphs import BATCHES, pictures
from tests.models.micro import micro, stop_at_share


def sessions(files: list[Path]) -> list[onnxruntime.InferenceSession]:
    return [onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]) for file in files]


def test_float32(tmp_path: Path) -> None:
    model = stop_at_share(micro())
    encoder, packed_encoder, decoder = sessions(export(model, "onnx", tmp_path))
    assert [x.shape for x in packed_encoder.get_outputs()] == [
        ["total", model.config.token_width], ["batch + 1"],
    ]  # fmt: skip
    for count in BATCHES:
        x, expected = pictures(count), model.encode(pictures(count))
        tokens, lengths = encoder.run(["tokens", "lengths"], {"pixels": x.numpy()})
        assert lengths.dtype == np.int32 and lengths.tolist() == expected.lengths.tolist()
        packed, ends = packed_encoder.run(["tokens", "cu_seqlens"], {"pixels": x.numpy()})
        assert ends.dtype == np.int32 and ends.tolist() == expected.cu_seqlens.tolist()
        np.testing.assert_allclose(packed, expected.tokens.numpy(), atol=1e-4, rtol=1e-4)
        (decoded,) = decoder.run(["pixels"], {"tokens": tokens, "lengths": lengths})
        np.testing.assert_allclose(decoded, model.decode(expected).numpy(), atol=1e-4, rtol=1e-4)


def test_dove_tiny_on_photographs(tmp_path: Path) -> None:
    """Own lengths of real pictures, through the shipped weights."""
    import dove_ext
    from dove_ext.models.dove import DoveModel

    model = DoveModel.from_pretrained("dove-tiny")
    (encoder,) = sessions(export(model, "onnx", tmp_path, parts=("packed_encoder",)))
    photos = sorted((Path(__file__).parents[2] / "examples" / "photos").glob("*.jpg"))
    x = dove_ext.prepare_images(photos, 256) / 2 + 0.5
    expected = model.encode(x)
    packed, ends = encoder.run(None, {"pixels": x.numpy()})
    assert ends.tolist() == expected.cu_seqlens.tolist()
    torch.testing.assert_close(torch.from_numpy(packed), expected.tokens, atol=2e-3, rtol=1e-3)
