"""Where the networks of perceptual distances come from, and their weights: torchvision; a file, a package."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from dove_ext.checkpoints.read import read_foreign
from dove_ext.errors import CheckpointError

EXTRAS = "'dove-ext[eval]' (or 'dove-ext[train]')"  # that hold torchvision and lpips


def torchvision_models() -> Any:
    """The module `torchvision.models`, imported when a network of it is wanted and not before.

    Raises:
        CheckpointError: if torchvision is not installed, or was built for another torch.
    """
    try:
        return import_module("torchvision.models")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "torchvision":
            raise
        raise CheckpointError(f"torchvision is not installed: pip install {EXTRAS}") from error
    except (ImportError, RuntimeError, OSError, AttributeError) as error:  # what another build fails with
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"the installed torchvision {_version('torchvision')} does not load beside torch "
            f"{torch.__version__} ({reason}): install both from one index, such as pip install "
            "--force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cpu"
        ) from error


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"


def package_file(package: str, inside: str, remedy: str) -> Path:
    """A file of an installed package, which is not imported: only its data is wanted.

    Args:
        package: name as in `import`.
        inside: path below the package's folder.
        remedy: what to do without it; ends the sentence.

    Raises:
        CheckpointError: if the package is not installed, or lacks the file.
    """
    spec = find_spec(package)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    if not folders:
        raise CheckpointError(f"the package {package!r} is not installed: {remedy}")
    path = Path(folders[0]) / inside
    if not path.is_file():
        raise CheckpointError(f"the installed package {package!r} has no {inside}: {remedy}")
    return path


def downloaded_file(url: str) -> Path:
    """A file of torchvision's model zoo, from the cache that PyTorch and torchvision share, or downloaded.

    Args:
        url: ends in "-<first digits of the SHA-256>.pth", and is checked against these.

    Raises:
        CheckpointError: if it cannot be downloaded.
    """
    name = Path(urlparse(url).path).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.is_file():
        return path
    digits = re.search(r"-([0-9a-f]+)\.", name)
    assert digits is not None, url
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=digits[1])
    except (OSError, RuntimeError) as error:  # the network, the disk; a wrong hash
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{url} could not be downloaded ({reason}); fetch it elsewhere and give its path as weights"
        ) from error
    return path


def read_tensors(path: str | Path, rename: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors of a weights file under the names that they have here.

    Args:
        path: safetensors, or a PyTorch checkpoint, of which only tensors are read.
        rename: regular expressions and what takes their place, the first that matches a name's start.

    Raises:
        CheckpointError: if the file cannot be read.
    """
    tensors = {}
    for name, tensor in read_foreign(path).tensors.items():
        for pattern, replacement in rename.items():
            if re.match(pattern, name):
                name = re.sub(pattern, replacement, name, count=1)
                break
        tensors[name] = tensor
    return tensors


def fill(module: nn.Module, tensors: Mapping[str, Tensor], path: str | Path, what: str) -> None:
    """Give a module made on the meta device its weights, in float32; every tensor must be there and fit.

    Args:
        module: its names are those of `tensors`.
        tensors: may hold more.
        path: where they come from, for the message.
        what: the file that was expected, for the message.

    Raises:
        CheckpointError: naming the first tensor that is missing or of another shape or kind.
    """
    chosen = {}
    for name, ours in module.state_dict().items():
        theirs = tensors.get(name)
        if theirs is None:
            raise CheckpointError(f"{path} is not {what}: its layer {name!r} is missing; give that file")
        if theirs.shape != ours.shape or theirs.is_floating_point() != ours.is_floating_point():
            raise CheckpointError(
                f"{path} is not {what}: its layer {name!r} is {theirs.dtype} {list(theirs.shape)}, not "
                f"{ours.dtype} {list(ours.shape)}; give that file"
            )
        chosen[name] = theirs.to(ours.dtype)
    module.load_state_dict(chosen, assign=True)
