"""What differs between the versions of transformers that are supported."""

from __future__ import annotations

from typing import Any

import transformers

OLDEST = (5, 19)
SLICES_FEATURES = (5, 23)
"""From here on a chunked prefill gives each chunk the features of its placeholders; before, it gives all."""


def version() -> tuple[int, int]:
    """Of the transformers that is there: major and minor number."""
    major, minor = transformers.__version__.split(".")[:2]
    return int(major), int(minor)


def require_supported() -> None:
    """Refuse a transformers that is too old, or that cannot be imported for what stands beside it.

    Raises:
        ImportError: saying which is needed.
    """
    try:
        import torchvision  # noqa: F401 (not needed, but transformers imports it where it is)
    except ModuleNotFoundError:
        pass
    except (RuntimeError, ImportError, OSError) as error:
        raise ImportError(
            f"torchvision does not fit this torch ({error}); uninstall it, or install the one made for this "
            "torch: transformers imports it"
        ) from error
    if version() < OLDEST:
        raise ImportError(
            f"dove_vlm needs transformers {OLDEST[0]}.{OLDEST[1]} or newer, here is "
            f"{transformers.__version__}: pip install 'dove-ext[vlm]'"
        )


def refuse_chunks(generation_config: Any, kwargs: dict[str, Any]) -> None:
    """Refuse a prefill in chunks with images where transformers would do it wrongly.

    Args:
        generation_config: of a model or a call.
        kwargs: of the call, which win.

    Raises:
        ValueError: if `prefill_chunk_size` is given and this transformers is older than `SLICES_FEATURES`.
    """
    size = kwargs.get("prefill_chunk_size", getattr(generation_config, "prefill_chunk_size", None))
    if size is not None and version() < SLICES_FEATURES:
        raise ValueError(
            "prefill_chunk_size with images needs transformers 5.23 or newer: older ones give every chunk "
            "all features; leave it out, or update transformers"
        )
