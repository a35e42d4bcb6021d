"""Write photographs' hidden states and the stop head for stop_and_pack: `python states.py PHOTO... STATES`.

Five int64 (images, positions, width, vocabulary, eos_id), then float32: the hidden states
[images, positions, width], weight [vocabulary, width] and bias [vocabulary] of the head; all in this
machine's byte order.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

import dove_ext


def main(photos: list[str], target: str) -> None:
    """Encode `photos` with the model of the demo, in float32."""
    model = dove_ext.load_model("dove-tiny", dtype=torch.float32)
    head, states = model.generator.embed_out, []
    model.generator.register_forward_hook(lambda _module, _inputs, hidden: states.append(hidden))
    with torch.no_grad():
        model(dove_ext.prepare_images(photos, model.config.image_size))
    (hidden,) = states
    bias = torch.zeros(len(head.weight)) if head.bias is None else head.bias.detach()
    header = np.array([*hidden.shape, len(head.weight), model.config.eos_id], dtype=np.int64)
    arrays = [header, hidden.numpy(), head.weight.detach().numpy(), bias.numpy()]
    Path(target).write_bytes(b"".join(array.tobytes() for array in arrays))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python states.py PHOTO... STATES")
    main(sys.argv[1:-1], sys.argv[-1])
