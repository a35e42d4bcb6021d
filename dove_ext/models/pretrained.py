"""Model folders: config.json, model.safetensors and README.md; found by name, path or hub id."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dove_ext.atomic import atomic_write, make_writable_folder
from dove_ext.config import PRESETS, DoveConfig, VQGANConfig
from dove_ext.devices import find_device
from dove_ext.errors import CheckpointError
from dove_ext.models.shipped import check_shipped, digest
from dove_ext.ops.backend import KERNEL_DTYPES

Config = TypeVar("Config", DoveConfig, VQGANConfig)
Model = TypeVar("Model", bound="Pretrained")

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
TOKENIZER = "tokenizer.json"  # of text queries, in the folder of a model that reads them
BASE, BASE_DIGEST = "base", "base_sha256"  # metadata of weights that another model's complete


def shipped_folder(name: str) -> Path | None:
    """The folder of a model whose weights come with the package, or None."""
    folder = _place(name)
    return folder if name in PRESETS and (folder / WEIGHTS).is_file() else None


def _place(name: str) -> Path:
    return Path(str(files("dove_ext"))) / "weights" / name


def find_model(name_or_path: str | Path, revision: str | None = None) -> Path:
    """The folder that holds a model: shipped by this name, an existing folder, or downloaded from the hub.

    Raises:
        CheckpointError: saying which of these was tried and what to do; or a shipped file is not what it was.
    """
    name = str(name_or_path)
    if (folder := shipped_folder(name)) is not None:
        check_shipped(name, folder)
        return folder
    path = Path(name_or_path)
    # os.path's, which say no where pathlib's raise: of folders that may not be entered, and names too long.
    if os.path.isdir(path):  # noqa: PTH112
        return path
    if os.path.exists(path):  # noqa: PTH110
        raise CheckpointError(f"{name} is a file; give the model's folder, with {CONFIG} and {WEIGHTS} in it")
    if name in PRESETS:
        check_shipped(name, _place(name))  # whose weights are gone
        raise CheckpointError(
            f"no weights of {name!r} come with the package; build it with random weights by "
            f"DoveModel({name!r}), or make it with `dove convert` and give its folder"
        )
    shipped = ", ".join(n for n in PRESETS if shipped_folder(n))
    if name.count("/") != 1 or name.startswith(("/", ".", "~")):
        raise CheckpointError(
            f"there is no model at {name!r}; give a shipped name ({shipped or 'none ship here'}), a folder, "
            "or a hub id like owner/name"
        )
    return _download(name, revision)


def _download(repository: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise CheckpointError(
            f"there is no folder {repository!r}, and to look on the hub huggingface_hub is needed: "
            "pip install 'dove-ext[hub]'"
        ) from error
    try:
        return Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=[CONFIG, WEIGHTS, CARD, TOKENIZER]
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"there is no folder {repository!r}, and the hub did not give it: {reason}"
        ) from error


def load_config(folder: Path, kind: type[Config]) -> Config:
    """Read a model folder's config.json, which must describe a model of this kind.

    Raises:
        CheckpointError: if it is missing, damaged or of another kind.
    """
    path = folder / CONFIG
    if not os.path.isfile(path):  # noqa: PTH113
        raise CheckpointError(f"{folder} holds no {CONFIG}; it is not a dove model's folder")
    try:
        return kind.from_json(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not text; the model folder is damaged") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; check its permissions") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises:
        CheckpointError: if it is missing, truncated or not safetensors.
    """
    if not os.path.isfile(path):  # noqa: PTH113
        raise CheckpointError(f"{path} is missing; the model folder is incomplete")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); download or save the model again") from error


def read_all_weights(folder: Path) -> dict[str, Tensor]:
    """Tensors of a model's folder, and those of the shipped model that it builds on, if it does.

    Raises:
        CheckpointError: if a file is missing, truncated or not safetensors, or was made for another version
            of the model that it builds on, or that model's are not what came with the package.
    """
    path = folder / WEIGHTS
    own = read_weights(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    name = metadata.get(BASE)
    if name is None:
        return own
    base = shipped_folder(name)
    if base is None:
        raise CheckpointError(f"{path} builds on {name!r}, which does not come with this dove_ext; update it")
    check_shipped(name, base)
    if metadata.get(BASE_DIGEST) != digest(base / WEIGHTS):
        raise CheckpointError(
            f"{path} builds on another {name!r} than comes with this dove_ext; take both of one version"
        )
    return {**read_weights(base / WEIGHTS), **own}


def _without(weights: dict[str, Tensor], base: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors that a shipped model does not have as they are, and what the file says about the others."""
    folder = shipped_folder(base)
    if folder is None:
        raise ValueError(f"{base!r} does not come with dove_ext; leave base out")
    check_shipped(base, folder)
    shipped = read_weights(folder / WEIGHTS)
    missing = sorted(set(shipped) - set(weights))
    if missing:
        raise ValueError(f"{base!r} has {missing[0]!r}, which this model has no place for; leave base out")
    own = {
        name: tensor
        for name, tensor in weights.items()
        if name not in shipped or not torch.equal(tensor.float(), shipped[name].float())
    }
    return own, {BASE: base, BASE_DIGEST: digest(folder / WEIGHTS)}


_FILLING = {
    nn.init.normal_, nn.init.uniform_, nn.init.trunc_normal_, nn.init.kaiming_uniform_, Tensor.normal_,
    Tensor.uniform_,
}  # fmt: skip


def computed(compute: Callable[[], Tensor], *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """What a new model computes; on the meta device only its shape.

    Arithmetic and random numbers load PyTorch's compiler there, to find out a shape: it takes seconds.
    """
    if torch.get_default_device().type == "meta":
        return torch.empty(shape, dtype=dtype)
    return compute()


class _NothingDrawn(TorchFunctionMode):
    """On the meta device, where there is nothing to fill: no random numbers (see `computed`)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FILLING:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


class Pretrained(nn.Module):
    """A model that is loaded from and saved to a model folder; subclasses name their configuration.

    Attributes:
        config_class: the configuration's class; the subclass is built from one such object.
        config: this model's.
    """

    config_class: ClassVar[type[Any]]
    config: Any

    @classmethod
    def from_pretrained(
        cls: type[Model],
        name_or_path: str | Path = "dove-tiny",
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        revision: str | None = None,
    ) -> Model:
        """Load a model that ships with the package, from a folder, or from the Hugging Face hub.

        Args:
            name_or_path: a shipped name ("dove-tiny"), a folder with config.json and model.safetensors, or
                a hub id ("owner/name"; needs the `hub` extra).
            device: where to put it.
            dtype: of the weights; float32 or bfloat16 for the compiled CPU kernels.
            revision: branch, tag or commit on the hub.

        Returns:
            The model, in evaluation mode.

        Raises:
            CheckpointError: if nothing is found there, or files are damaged or do not fit together.
            ValueError: if the dtype is not a floating one, or not one that the CPU kernels take, or no device
                has this name.
            DoveError: if the device is not there.
        """
        device = find_device(device) if isinstance(device, str) else device
        _require_floating(dtype)
        if device.type == "cpu" and dtype not in KERNEL_DTYPES["cpu"]:
            raise ValueError(f"on the CPU dtype must be torch.float32 or torch.bfloat16, got {dtype}")
        folder = find_model(name_or_path, revision)
        config = load_config(folder, cls.config_class)
        model = cls.of_weights(config, read_all_weights(folder), str(folder / WEIGHTS))
        model.load_files(folder)
        return model.to(device=device, dtype=dtype).eval()

    @classmethod
    def of_weights(cls: type[Model], config: Any, weights: dict[str, Tensor], source: str) -> Model:
        """Build a model from its tensors, by the names of `state_dict`: float32 on the CPU, in training mode.

        Args:
            config: its configuration.
            weights: all of its tensors, of any floating dtypes.
            source: how an error calls their file.

        Raises:
            CheckpointError: if they do not fit the configuration, or are not finite.
        """
        with torch.device("meta"), _NothingDrawn():
            # A config.json that asks for terabytes is refused before it gets them.
            fit_weights(cls(config), weights, source)
        with torch.device("cpu"):  # whatever default device and dtype a caller has set: nothing is rounded
            model = cls(config).float()
        model.load_state_dict(weights)
        return model

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        card: str | None = None,
        dtype: torch.dtype | None = None,
        base: str | None = None,
    ) -> None:
        """Write config.json, model.safetensors and README.md, each complete or not at all.

        A model with a tokenizer of text queries writes its tokenizer.json, too.

        Args:
            folder: made if it is missing.
            card: text of README.md; a short one is written if None.
            dtype: floating dtype of the saved weights (None: as they are).
            base: a shipped model's name: tensors that this one shares with it are left out of the file, and
                read from there. None: the file holds all.

        Raises:
            ValueError: if `dtype` is no floating dtype or does not hold the weights, or `base` does not ship
                or has tensors that this model has not.
            OutputError: if a file cannot be written.
        """
        if dtype is not None:
            _require_floating(dtype)
        folder = make_writable_folder(Path(folder))
        weights = {
            name: (tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor)
            .cpu()
            .contiguous()
            for name, tensor in self.state_dict().items()
        }
        for name, tensor in weights.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise ValueError(f"{name!r} is not finite as {tensor.dtype}; save in a wider dtype")
        about = {"format": "pt"}
        if base is not None:
            weights, more = _without(weights, base)
            about |= more
        with atomic_write(folder / WEIGHTS) as temporary:
            # Not save_file: it replaces the file, and the new one is readable by its owner alone.
            temporary.write_bytes(save(weights, metadata=about))
        with atomic_write(folder / CONFIG) as temporary:
            temporary.write_text(self.config.to_json(), encoding="utf-8")
        texts = {CARD: card if card is not None else self.card(), **self.more_files()}
        for name, text in texts.items():
            with atomic_write(folder / name) as temporary:
                temporary.write_bytes(text.encode("utf-8"))

    def load_files(self, folder: Path) -> None:
        """Take what else a folder of this kind of model holds beside configuration and weights.

        Raises:
            CheckpointError: if it cannot be read.
        """

    def more_files(self) -> dict[str, str]:
        """What else `save_pretrained` writes: name -> text."""
        return {}

    def check_weights(self, weights: dict[str, Tensor], source: str) -> None:
        """Refuse values that no model of this kind has; names and shapes are known to fit.

        Args:
            weights: by the names of `state_dict`.
            source: how an error calls their file.

        Raises:
            CheckpointError: naming the tensor.
        """

    def card(self) -> str:
        """A model card that says what the folder holds and nothing that was not measured."""
        raise NotImplementedError

    def make_card(self, title: str, holds: str, *, module: str, use: str) -> str:
        """The text of a card.

        Args:
            title: its heading.
            holds: what the folder holds, one sentence without its full stop.
            module: where the class is imported from.
            use: a line of Python with `model`.
        """
        millions = sum(p.numel() for p in self.parameters()) / 1e6
        kind = type(self).__name__
        return (
            f"---\nlibrary_name: dove_ext\ntags: [image-tokenizer, dove]\n---\n\n# {title}\n\n"
            f"{holds}, {millions:.1f} M parameters.\n\n"
            f"```python\nfrom {module} import {kind}\n\n"
            f'model = {kind}.from_pretrained("this/folder")\n{use}\n```\n\n'
            "No measurements were recorded with these weights.\n"
        )


def _require_floating(dtype: torch.dtype) -> None:
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating dtype such as torch.float32, got {dtype!r}")


def fit_weights(model: Pretrained, weights: dict[str, Tensor], source: str) -> None:
    """Check that a checkpoint holds exactly a model's tensors, each of its shape and finite.

    Raises:
        CheckpointError: naming the first tensor that is missing, foreign, misshapen or not finite.
    """
    expected = model.state_dict()
    for name, tensor in expected.items():
        if name not in weights:
            raise CheckpointError(f"{source} lacks {name!r}; the file does not belong to this {CONFIG}")
        if weights[name].shape != tensor.shape:
            raise CheckpointError(
                f"{source}: {name!r} is {list(weights[name].shape)}, {CONFIG} asks for {list(tensor.shape)}; "
                "the two files do not belong together"
            )
        if weights[name].is_floating_point() != tensor.is_floating_point():
            raise CheckpointError(
                f"{source}: {name!r} is {weights[name].dtype}, expected the kind of {tensor.dtype}"
            )
        # In float32: torch cannot ask this of every 8-bit format.
        if weights[name].is_floating_point() and not torch.isfinite(weights[name].float()).all():
            raise CheckpointError(f"{source}: {name!r} holds NaN or infinity; the checkpoint is damaged")
    foreign = sorted(set(weights) - set(expected))
    if foreign:
        raise CheckpointError(f"{source} holds {foreign[0]!r}, which this model has no place for")
    model.check_weights(weights, source)


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Identifies named weights (hexadecimal SHA-256 over names, dtypes, shapes and bytes)."""
    hasher = sha256()
    for name, tensor in weights.items():
        hasher.update(f"{name}{tensor.dtype}{list(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        if flat.numel():
            hasher.update(flat.view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def require_indices(name: str, weights: dict[str, Tensor], count: int, source: str) -> Tensor:
    """The tensor of this name, whose values must lie in 0..count-1.

    Raises:
        CheckpointError: if they do not.
    """
    indices = weights[name]
    if indices.dtype not in (torch.int32, torch.int64):
        raise CheckpointError(f"{source}: {name!r} must be int32 or int64, got {indices.dtype}")
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < count:
        raise CheckpointError(
            f"{source}: {name!r} holds indices outside 0..{count - 1}; the checkpoint is damaged"
        )
    return indices
