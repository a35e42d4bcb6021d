"""Everything a run depends on: one flat dataclass and its stages, filled from recipes and command lines."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from dove_ext.errors import DoveError
from dove_ext.fields import UnknownFieldError, build

T = TypeVar("T")

# What a stage may train, see `stages.parts_of`.
PART_NAMES = (
    "encoder", "decoder", "codebook", "linear", "generator", "features", "upper_layers", "last_layer",
    "tokens", "token_decoder", "head", "query", "relevance",
)  # fmt: skip
# Of these, what each path runs through.
PATHS = {
    "tokens": tuple(name for name in PART_NAMES if name not in ("codebook", "query", "relevance")),
    "autoencoder": ("encoder", "decoder", "codebook", "linear"),
    "features": ("features", "upper_layers", "last_layer", "tokens"),
    "query": tuple(name for name in PART_NAMES if name not in ("codebook", "linear")),
}


class TrainingError(DoveError, ValueError):
    """Settings, data or a checkpoint that a run cannot use; one sentence with the remedy."""


def setting(default: Any, text: str) -> Any:
    """A field of settings: its default, and what people read of it."""
    return field(default=default, metadata=_help(text))


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class Stage:
    """One part of a schedule: what is trained, through which path, for how long."""

    steps: int = setting(0, "optimiser steps")
    train: list[str] = field(
        default_factory=list, metadata=_help(f"parts that are trained, of {', '.join(PART_NAMES)}")
    )
    path: str = setting(
        "tokens",
        "'tokens': the whole model at sampled lengths; 'autoencoder': the VQGAN alone; 'features': the "
        "generator alone: image positions and, if tokens are trained, tokens distilled from MobileNetV2; "
        "'query': on pictures with queries and boxes (Q-DOVE) the whole model, or a relevance map alone",
    )
    learning_rate: float = setting(0.0, "peak of AdamW's learning rate (0: the run's)")
    crop: int = setting(0, "path 'autoencoder': side of random square crops, in pixels (0: whole images)")

    def __post_init__(self) -> None:
        if self.path not in PATHS:
            raise TrainingError(f"a stage's path must be one of {', '.join(PATHS)}, got {self.path!r}")
        for name in self.train:
            if name not in PART_NAMES:
                raise TrainingError(f"a stage can train {', '.join(PART_NAMES)}; {name!r} is none of these")
        if not self.train:
            raise TrainingError(f"a stage must train something: give `train` some of {', '.join(PART_NAMES)}")
        if self.path == "features" and self.train != ["features"] and "tokens" not in self.train:
            raise TrainingError(
                "a stage with path 'features' trains features alone or, with tokens, what makes them: give "
                "it train: [features], or add tokens"
            )
        if self.path == "features" and self.crop:
            raise TrainingError("a stage with path 'features' draws its own squares; leave its crop out")
        for name in self.train:
            if name not in PATHS[self.path]:
                raise TrainingError(
                    f"a stage with path {self.path!r} can train {', '.join(PATHS[self.path])}; {name!r} is "
                    "not on that path"
                )
        if self.crop and self.path != "autoencoder":
            raise TrainingError("a stage's crop needs path: autoencoder; all other paths take whole images")
        if self.path == "query" and "relevance" in self.train and self.train != ["relevance"]:
            raise TrainingError("a relevance map is trained by itself: give the stage train: [relevance]")
        at_least(self, 0, "steps", "learning_rate", "crop")


@dataclass
class Settings:
    """One run. Recipes are YAML files of these fields; the command line overrides single ones."""

    # --- the model ---
    preset: str = setting("dove-tiny", "shape of the model: a preset of DOVE or of the VQGAN baseline")
    shape: dict[str, Any] = field(
        default_factory=dict, metadata=_help("fields of the shape that differ from the preset")
    )
    start_from: str = setting("", "model to start from, shape and weights: a name or a folder")
    fit_images: int = setting(1024, "images that the closed form of a linear code is fitted to")
    name: str = setting("", "the model's name; tokens remember it (empty: the output folder's name)")
    # --- the data ---
    data: list[str] = field(
        default_factory=list, metadata=_help("image folders, tar shards, images to train on")
    )
    queries: list[str] = field(
        default_factory=list,
        metadata=_help("path 'query': tar shards with boxes, visual-genome:FOLDER, open-images:FOLDER"),
    )
    mosaics: float = setting(0.0, "path 'query': share of samples that are mosaics of the labelled `data`")
    tokenizer: str = setting("", "tokenizer.json of a model that reads queries (empty: that of start_from)")
    validation: list[str] = field(default_factory=list, metadata=_help("held-out images, likewise"))
    validation_limit: int = setting(100, "held-out images used, evenly spread")
    synsets: str = setting("", "file that lists the ImageNet classes to use (empty: all)")
    crop_scale: float = setting(0.85, "smallest side of the random crop, as a share of the short side")
    flip: float = setting(0.5, "share of images mirrored")
    grey: float = setting(0.1, "share of images made grey")
    drawn: float = setting(0.0, "share of pictures that are drawn (print, charts, patterns) instead")
    workers: int = setting(0, "processes that read images (0: the training process does)")
    min_side: int = setting(0, "least short side of a stored training image, in pixels (0: all are used)")
    max_unreadable: int = setting(100, "unreadable images that are skipped; one more ends the run")
    # --- L_rec (Eq. 2) ---
    mse_weight: float = setting(1.0, "weight of the mean squared error (pixels in [-1, 1])")
    perceptual: str = setting("", "distance: lpips-vgg or mobilenet (empty: none)")
    perceptual_weight: float = setting(0.1, "weight of the perceptual distance")
    perceptual_weights: str = setting("", "file with its backbone (empty: from its package, or downloaded)")
    teacher: str = setting(
        "mobilenet",
        "feature distillation: whose features are predicted, mobilenet (V2) or efficientnet-lite2",
    )
    alignment_weights: str = setting("", "the teacher's file (empty: from its package)")
    alignment_weight: float = setting(
        0.0,
        "path 'autoencoder': weight of the distance from the teacher's features; 0 leaves it out",
    )
    classifier: str = setting(
        "", "relevance map: file of EfficientNet-Lite2, backbone and teacher (empty: from its package)"
    )
    sentence_encoder: str = setting(
        "", "relevance map of a start without one: folder of an encoder that embeds its words"
    )
    gan_weight: float = setting(0.0, "weight of the adversarial loss; the paper's is 5e-10; 0 leaves it out")
    gan_start: int = setting(0, "step at which the adversarial loss sets in")
    kl_weight: float = setting(1e-6, "weight of the KL term of DOVE (Gaussian)")
    loss_scale: str = setting(
        "absolute", "'absolute': L_rec; 'relative': log L_rec, whose gradient is PSNR's"
    )
    # --- lengths and L_eos (Eq. 3) ---
    eos_rule: str = setting("sampled", "'sampled': at random lengths; 'paper': at the model's own (Eq. 3)")
    lambda_eos: float = setting(0.05, "weight of L_eos, reached at 25% of a stage")
    target_length: float = setting(
        0.0,
        "sampled rule: mean length aimed at, in tokens (0: 90); a model with a linear code keeps its "
        "promised_psnr instead",
    )
    full_share: float = setting(0.2, "sampled rule: share of images at full length; others log-uniform")
    # --- optimisation ---
    batch_size: int = setting(16, "images a process and a pass")
    accumulate: int = setting(1, "gradient accumulation: passes a step")
    learning_rate: float = setting(1e-4, "peak of AdamW's learning rate")
    warmup_steps: int = setting(100, "linear warm-up of the learning rate in each stage, in steps")
    weight_decay: float = setting(0.01, "AdamW's, of matrices and convolutions")
    clip: float = setting(1.0, "largest norm of the gradient; a longer one is scaled down")
    ema: float = setting(0.999, "decay of the averaged weights, which are evaluated and saved")
    bf16: bool = setting(True, "bfloat16 autocast")
    # --- scale ---
    device: str = setting("auto", "'auto': the GPU of this process, if there is one; or cpu, cuda, ...")
    parallel: str = setting("ddp", "under torchrun: 'ddp' or 'fsdp2'")
    activation_checkpointing: bool = setting(False, "recompute activations in the backward pass")
    compile: bool = setting(False, "torch.compile the model")
    # --- the run ---
    seed: int = setting(0, "seed of initial weights, lengths and the order of images")
    steps: int = setting(0, "at most this many steps in each stage (0: as the stages say)")
    minutes: float = setting(0.0, "wall-clock budget that shortens the stages (0: none)")
    log_every: int = setting(10, "steps between progress lines")
    checkpoint_every: int = setting(100, "steps between checkpoints")
    keep_checkpoints: int = setting(2, "newest checkpoints that are kept")
    evaluate_every: int = setting(500, "steps between evaluations on the held-out images")
    picture_every: int = setting(500, "steps between picture grids; 0 leaves them out")
    tensorboard: bool = setting(False, "write tensorboard logs, too")
    # --- the schedule ---
    stages: dict[str, Stage] = field(default_factory=dict, metadata=_help("stages in order, by name"))

    def __post_init__(self) -> None:
        from_one = "batch_size accumulate warmup_steps log_every checkpoint_every keep_checkpoints"
        at_least(self, 1, *from_one.split(), "evaluate_every", "validation_limit")
        at_least(self, 32, "fit_images")
        from_zero = "steps minutes seed workers min_side max_unreadable picture_every gan_start"
        weights = "mse_weight perceptual_weight gan_weight kl_weight weight_decay lambda_eos alignment_weight"
        at_least(self, 0, *from_zero.split(), *weights.split())
        at_least(self, 0, "target_length")
        if self.seed >= 1 << 63:
            raise TrainingError(f"seed must be less than 2^63, got {self.seed}")
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) < float("inf"):
                raise TrainingError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("crop_scale", "flip", "grey", "drawn", "mosaics", "full_share", "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise TrainingError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        paths = {stage.path for stage in self.stages.values()}
        if "query" in paths and len(paths) > 1:
            raise TrainingError(
                "stages of path 'query' read queries, all others images; train these in a run of their own, "
                "and start the other one from its model (start_from)"
            )
        if self.asks and not self.points and any("relevance" in s.train for s in self.stages.values()):
            raise TrainingError("a relevance map is trained in a run of its own; start that from this model")
        strange = ("drawn", "min_side", "synsets") if self.asks else ("queries", "mosaics")
        if self.asks and not self.mosaics:
            strange = (*strange, "data")
        if given := next((name for name in strange if getattr(self, name)), None):
            what = "has no meaning" if self.asks else "has a meaning only"
            raise TrainingError(f"{given} {what} in stages of path 'query'; leave it out")
        choices = {
            "eos_rule": ("sampled", "paper"),
            "parallel": ("ddp", "fsdp2"),
            "loss_scale": ("absolute", "relative"),
            "teacher": ("mobilenet", "efficientnet-lite2"),
        }
        one_of(self, choices)

    @property
    def asks(self) -> bool:
        """Whether the stages train on queries (Q-DOVE)."""
        return any(stage.path == "query" for stage in self.stages.values())

    @property
    def points(self) -> bool:
        """Whether they train a relevance map alone."""
        return self.asks and all(stage.train == ["relevance"] for stage in self.stages.values())


def at_least(settings: Any, least: float, *names: str) -> None:
    """Refuse fields that are less, or not finite.

    Raises:
        TrainingError: naming the first of them.
    """
    for name in names:
        if not least <= getattr(settings, name) < float("inf"):
            raise TrainingError(f"{name} must be at least {least}, got {getattr(settings, name)}")


def one_of(settings: Any, choices: dict[str, tuple[str, ...]]) -> None:
    """Refuse fields that are none of their choices.

    Raises:
        TrainingError: naming the first of them.
    """
    for name, allowed in choices.items():
        if getattr(settings, name) not in allowed:
            raise TrainingError(
                f"{name} must be {' or '.join(map(repr, allowed))}, got {getattr(settings, name)!r}"
            )


def read_recipe(path: str | Path) -> dict[str, Any]:
    """A recipe's fields as plain values.

    Raises:
        TrainingError: if the file is missing or not a YAML mapping.
    """
    try:
        import yaml
    except ImportError as error:
        raise TrainingError("recipes are YAML: pip install 'dove-ext[train]'") from error
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), _loader(yaml))
    except OSError as error:
        raise TrainingError(f"the recipe {str(path)!r} cannot be read: {error.strerror}") from error
    except (
        Exception
    ) as error:  # PyYAML raises what its parts happen to: a KeyError of `!!bool x`, of a month 13
        reason = " ".join(f"{error or type(error).__name__}".split())
        raise TrainingError(f"the recipe {str(path)!r} is not YAML: {reason:.300}") from error
    if not isinstance(values, dict):
        raise TrainingError(
            f"the recipe {str(path)!r} must be a mapping of settings, such as `batch_size: 16`"
        )
    return values


@cache
def _loader(yaml: Any) -> Any:
    """A safe loader that reads 5e-10 as the number it is (YAML 1.1 wants 5.0e-10)."""
    import re

    class Loader(yaml.SafeLoader):
        pass

    Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
    number = re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    return Loader


def parse_value(text: str, option: str) -> Any:
    """One value of the command line, read as in a recipe.

    Raises:
        TrainingError: naming the option, if it is not YAML.
    """
    import yaml

    try:
        return yaml.load(text, _loader(yaml))
    except Exception as error:  # see `read_recipe`
        raise TrainingError(
            f"{option}: {text!r} is not a YAML value; quote what has brackets or spaces, as in '[1, 2]'"
        ) from error


def make_settings(values: dict[str, Any], source: str) -> Settings:
    """Settings from plain values, each checked.

    Args:
        values: a recipe's fields, possibly overridden.
        source: what to call them in messages.

    Raises:
        TrainingError: naming the field that is unknown, of the wrong type or out of range.
    """
    values = dict(values)
    stages = values.pop("stages", {})
    if not isinstance(stages, dict) or not all(isinstance(s, dict) for s in stages.values()):
        raise TrainingError(f"{source}: stages must be a mapping of names to stages")
    built = {
        str(name): build_settings(Stage, stage, f"{source}: stage {name!r}") for name, stage in stages.items()
    }
    return build_settings(Settings, {**values, "stages": built}, source)


def build_settings(cls: type[T], values: dict[str, Any], source: str) -> T:
    """A dataclass of settings, this module's or another's, from plain values, each checked.

    Raises:
        TrainingError: naming `source` and the field that is unknown, of the wrong type or out of range.
    """
    try:
        return build(cls, values, _KINDS)
    except UnknownFieldError as error:
        if cls is Settings and error.name in _CONSTANTS:
            raise TrainingError(
                f"{source} has no setting {error.name!r}: {_CONSTANTS[error.name]}; leave it out"
            ) from error
        raise TrainingError(f"{source} has no setting {error.name!r}{error.hint}") from error
    except TrainingError:
        raise
    except ValueError as error:
        raise TrainingError(f"{source}: {error}") from error


# Settings of earlier recipes, and what holds now.
_CONSTANTS: dict[object, str] = {
    "closed_form": "a model with a linear code starts from the closed form unless start_from names a model",
    "gan_learning_rate": "it is 1e-4",
    "commitment": "it is 0.25",
    "ramp_start": "lambda_eos is 0 for the first 5% of a stage",
    "ramp_end": "lambda_eos is whole from 25% of a stage on",
    "window": "the paper's rule averages the last 100 steps",
    "start_threshold": "the first threshold is the first batch's mean L_rec",
    "threshold_rate": "the threshold moves by at most 2% a step",
}
_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
}
