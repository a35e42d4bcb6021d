"""The licences of what pip installs beside dove_ext."""

from __future__ import annotations

# Of the packages themselves; what their wheels bundle is theirs to list.
LICENSES = {
    "torch": "BSD-3-Clause",
    "numpy": "BSD-3-Clause",
    "pillow": "MIT-CMU",
    "safetensors": "Apache-2.0",
    "tqdm": "MPL-2.0 AND MIT",
}
