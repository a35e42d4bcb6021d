"""Building a dove model from the public checkpoints of its parts: a VQGAN and Pythia.

A file is used only if its names are those of a known layout; shapes are then checked one by one. Nothing is
matched by resemblance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dove_ext.checkpoints.names import CODEBOOK, STACKS, Source, from_pythia, from_vqgan
from dove_ext.checkpoints.read import read_foreign
from dove_ext.config import DoveConfig, preset
from dove_ext.errors import CheckpointError, OutputError
from dove_ext.models.dove import DoveModel
from dove_ext.models.pretrained import CONFIG, WEIGHTS, find_model, fit_weights, load_config, read_all_weights


@dataclass(frozen=True)
class Conversion:
    """A converted model.

    Attributes:
        model: with the converted weights, in float32.
        sources: one entry a file.
        untouched: tensors of the model that no file gave.
        base: where the untouched ones come from: a folder, or None if they are random.
    """

    model: DoveModel
    sources: tuple[Source, ...]
    untouched: tuple[str, ...]
    base: str | None


def convert(
    *,
    vqgan: str | Path | None = None,
    pythia: str | Path | None = None,
    preset_name: str = "dove-base",
    base: str | Path | None = None,
    name: str | None = None,
) -> Conversion:
    """Build a model from a VQGAN's file, a Pythia file, or both.

    Pythia's layers go into both stacks, the generator's and the token decoder's, and its `embed_out` into the
    generator's vocabulary head; its `embed_in` is used only by models that embed query ids. The VQGAN's
    codebook decides `codebook_size`. What no file gives (at least the linear maps between the two widths)
    keeps the base model's weights or, without a base, random ones from a fixed seed.

    Args:
        vqgan: a taming-transformers VQGAN checkpoint or the diffusers form of one.
        pythia: a GPT-NeoX checkpoint with `gpt_neox.` names (Pythia-70M for dove-base).
        preset_name: the configuration, by name.
        base: a model whose configuration and remaining weights are kept (a shipped name, folder or hub id);
            replaces `preset_name`.
        name: the new model's name; None keeps that of the preset or base.

    Returns:
        Conversion: the model and what it was made of.

    Raises:
        UnknownLayoutError: if a file's names belong to no known layout.
        CheckpointError: if a file cannot be read, or its tensors do not fit the configuration.
        ValueError: if no file is given, or the preset is unknown.
    """
    if vqgan is None and pythia is None:
        raise ValueError("give a VQGAN file, a Pythia file, or both")
    folder = None if base is None else find_model(base)
    config = preset(preset_name) if folder is None else load_config(folder, DoveConfig)
    config = config if name is None else dataclasses.replace(config, name=name)
    parts: list[tuple[Source, dict[str, Tensor]]] = []
    if vqgan is not None:
        part, source = from_vqgan(read_foreign(vqgan))
        if (codebook := part["vqgan." + CODEBOOK]).dim() == 2:
            shape = dataclasses.replace(config.vqgan, codebook_size=codebook.shape[0])
            config = dataclasses.replace(config, vqgan=shape)
        parts.append((source, part))
    if pythia is not None:
        part, source = from_pythia(read_foreign(pythia), config)
        parts.append((source, part))
    with torch.device("meta"):
        expected = DoveModel(config).state_dict()
    given: dict[str, Tensor] = {}
    for source, part in parts:
        _check_part(part, expected, source)
        given |= {name: tensor.float() for name, tensor in part.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DoveModel(config)
    if folder is not None:
        # A codebook of another size has no place in the new configuration; it comes from the file anyway.
        kept = {n: t for n, t in read_all_weights(folder).items() if n not in given}
        fit_weights(model, {**kept, **given}, str(folder / WEIGHTS))
        model.load_state_dict({**kept, **given})
        model.load_files(folder)
    else:
        model.load_state_dict(given, strict=False)
    untouched = tuple(name for name in expected if name not in given)
    sources = tuple(source for source, _ in parts)
    return Conversion(model.eval(), sources, untouched, None if base is None else str(base))


def save_conversion(conversion: Conversion, output: str | Path) -> None:
    """Write a converted model's folder, with a card that says what it was made of.

    Raises:
        OutputError: as `check_output`, or if the folder cannot be written.
    """
    check_output(output)
    conversion.model.save_pretrained(output, card=_card(conversion))


def check_output(output: str | Path) -> None:
    """Refuse a folder that holds something other than a dove model; one that does is replaced.

    Raises:
        OutputError: naming the folder.
    """
    folder = Path(output)
    try:
        if not folder.is_dir() or not any(folder.iterdir()):
            return  # `save_pretrained` makes it, or says why it cannot
    except OSError as error:
        raise OutputError(
            f"{str(output)!r} cannot be looked into: {error.strerror}; choose another"
        ) from error
    try:
        load_config(folder, DoveConfig)
    except CheckpointError as error:
        raise OutputError(
            f"{str(output)!r} holds other files than a dove model's; choose a new or empty folder"
        ) from error


def _check_part(part: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: Source) -> None:
    """Every tensor must have its place, its shape and finite values, and no place may stay empty."""
    file = f"{source.path} ({source.layout})"
    for name, tensor in part.items():
        if name not in expected:
            raise CheckpointError(
                f"{file} has a tensor for {name!r}, which this configuration has no place for; "
                "choose the --preset or --base of its shape"
            )
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{file}: {name!r} is {list(tensor.shape)}, the configuration asks for "
                f"{list(expected[name].shape)}; choose the --preset or --base of its shape"
            )
        if not tensor.is_floating_point() or not torch.isfinite(tensor.float()).all():
            raise CheckpointError(f"{file}: {name!r} is not all finite floats; the file is damaged")
    prefixes = ("vqgan.",) if "VQGAN" in source.layout else STACKS
    for name in expected:
        if name.startswith(prefixes) and name not in part:
            raise CheckpointError(
                f"{file} lacks {name!r}; choose the --preset or --base of its shape, or get the whole file"
            )


def _card(conversion: Conversion) -> str:
    """The model card: sources, what is not trained, licences to check."""
    config = conversion.model.config
    files = "".join(
        f"- `{source.path.name}` ({source.layout}, {len(source.used)} tensors), sha256 `{source.sha256}`\n"
        for source in conversion.sources
    )
    # Not the witnesses: any rows of the vocabulary are correct there.
    groups = sorted({".".join(n.split(".")[:2]) for n in conversion.untouched if not n.endswith(".witness")})
    rest = f"weights of `{conversion.base}`" if conversion.base else "random weights"
    trained = (
        f"These parts come from no file above and hold {rest}: {', '.join(f'`{g}`' for g in groups)}. "
        "The parts were not trained together: train the model before you expect its tokens to carry an image."
    )
    return (
        f"---\nlibrary_name: dove_ext\ntags: [image-tokenizer, dove]\n---\n\n# {config.name}\n\n"
        f"A DOVE image tokenizer ({config.image_size} x {config.image_size} pixels to 1..{config.num_tokens} "
        f"tokens of width {config.token_width}), assembled by `dove convert` from:\n\n{files}\n{trained}\n\n"
        f"Configuration and weights: `{CONFIG}`, `{WEIGHTS}`. No measurements were recorded with them.\n\n"
        "## Licence\n\nThe weights keep the licences of the files above. Check them where you got the files "
        "(for a VQGAN also the terms of the images it was trained on) before you pass this folder on.\n"
    )
