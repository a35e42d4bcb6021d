"""The shape of a model as dataclasses, and the presets by name.

A shape is everything that decides which tensors a checkpoint holds and what they mean. What a caller may
change from call to call (lengths, thresholds, block size) is an argument of `DoveModel.encode` instead.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from dove_ext.errors import CheckpointError
from dove_ext.fields import UnknownFieldError, build

# More slots than any model has (K = 256 at 256 x 256): a bound for what a file may claim.
MAX_SLOTS = 65536
# Likewise for a model's sizes, so that no tensor's size overflows, and for layers and blocks, each of which
# takes time to build even where it takes no memory.
_LARGEST, _COARSEST, _DEEPEST = 2**20, 2**16, 256
_WIDEST = 8  # scale of a backbone


def _require(config: Any, minimum: int, *names: str, most: int = _LARGEST) -> None:
    for name in names:
        value = getattr(config, name)
        if value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value}")
        if value > most:
            raise ValueError(f"{name} must be at most {most}, got {value}")


@dataclass(frozen=True)
class VQGANConfig:
    """The convolutional autoencoder (VQGAN, f = `downsampling`)."""

    channels: int = 128  # width of the first level
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # one level each, halving the resolution between
    encoder_blocks: int = 2  # residual blocks a level; 0: no convolutions, `patch_shortcut` alone encodes
    decoder_blocks: int = 3
    latent_channels: int = 256  # z_channels = embed_dim
    codebook_size: int = 8192  # of the VQGAN baseline; outside DOVE's path. 0 leaves the quantiser out
    stem_patch: int = 1  # side of the patch that the first convolution folds into one position
    patch_shortcut: bool = False  # a linear map of whole patches beside the convolutions, both ways

    def __post_init__(self) -> None:
        _require(self, 1, "channels", "latent_channels", "stem_patch")
        _require(self, 1, "decoder_blocks", most=_DEEPEST)
        _require(self, 0, "encoder_blocks", most=_DEEPEST)
        _require(self, 0, "codebook_size")
        if not self.encoder_blocks and not self.patch_shortcut:
            raise ValueError("encoder_blocks=0 needs patch_shortcut=True: nothing else would encode")
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise ValueError(
                f"channel_multipliers must name a level each, all at least 1, got {self.channel_multipliers}"
            )
        if self.stem_patch & (self.stem_patch - 1):
            raise ValueError(f"stem_patch must be a power of two, got {self.stem_patch}")
        if self.downsampling > _COARSEST:
            raise ValueError(
                f"the downsampling must be at most {_COARSEST}; name fewer channel_multipliers or a smaller "
                "stem_patch"
            )
        widths = [self.channels * m for m in self.channel_multipliers]
        if self.encoder_blocks:  # whose first block reads the stem's
            widths = list(dict.fromkeys([self.channels, *widths]))
        if any(width % 32 for width in widths):
            raise ValueError(f"every level's width must be a multiple of 32 (GroupNorm groups), got {widths}")
        if max(widths) > _LARGEST:
            raise ValueError(f"every level's width must be at most {_LARGEST}, got {widths}")

    @property
    def downsampling(self) -> int:
        """Pixels of the image along one side of a grid position."""
        return int(self.stem_patch * 2 ** (len(self.channel_multipliers) - 1))

    def to_json(self) -> str:
        """The configuration as it stands in the config.json of a VQGAN's own folder."""
        return _to_json("vqgan", self)

    @classmethod
    def from_json(cls, text: str, source: str = "config.json") -> VQGANConfig:
        """Read `to_json`'s output; errors as for `DoveConfig.from_json`."""
        config: VQGANConfig = _from_json(cls, "vqgan", text, source)
        return config


@dataclass(frozen=True)
class StackConfig:
    """A GPT-NeoX stack; the defaults are Pythia-70M's."""

    hidden: int = 512
    layers: int = 6
    heads: int = 8
    mlp: int = 2048
    rotary_fraction: float = 0.25  # share of each head's dimensions that is rotated
    rotary_base: float = 10000.0
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        _require(self, 1, "hidden", "heads", "mlp")
        _require(self, 1, "layers", most=_DEEPEST)
        if not 0 < self.rotary_fraction <= 1:
            raise ValueError(f"rotary_fraction must be above 0 and at most 1, got {self.rotary_fraction}")
        for name in ("rotary_base", "layer_norm_eps"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        if self.rotary_dim % 2:
            raise ValueError(
                f"rotary_fraction {self.rotary_fraction} gives an odd number of rotated dimensions"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads

    @property
    def rotary_dim(self) -> int:
        """Rotated dimensions of each head, the first ones."""
        return int(self.head_dim * self.rotary_fraction)


def _relevance_stack() -> StackConfig:
    return StackConfig(hidden=128, layers=1, heads=4, mlp=512)


@dataclass(frozen=True)
class RelevanceConfig:
    """Where a query points (`models.relevance`); the backbone is EfficientNet-Lite2's shape."""

    backbone_width: float = 1.1  # scale of EfficientNet-Lite's widths
    backbone_depth: float = 1.2  # and of its number of blocks
    word_width: int = 128
    stack: StackConfig = field(default_factory=_relevance_stack)  # over what the backbone sees
    around: int = 32  # channels of the convolutions that look at a place's neighbours

    def __post_init__(self) -> None:
        for name in ("backbone_width", "backbone_depth"):
            if not 0 < getattr(self, name) <= _WIDEST:
                raise ValueError(f"{name} must be above 0 and at most {_WIDEST}, got {getattr(self, name)}")
        _require(self, 1, "word_width", "around")


@dataclass(frozen=True)
class DoveConfig:
    """A DOVE model. The defaults are the paper's (2.1, A.1)."""

    name: str = "dove-base"
    image_size: int = 256
    vqgan: VQGANConfig = field(default_factory=VQGANConfig)
    generator: StackConfig = field(default_factory=StackConfig)
    token_decoder: StackConfig = field(default_factory=StackConfig)
    vocab_size: int = 50304  # of the head that decides EOS; 2 ("go on", "EOS") when trained from scratch
    eos_id: int = 0
    head_bias: bool = False  # a bias in the head; with it p_eos starts at `eos_prior` in a new model
    eos_prior: float = 0.01
    prefix_attention: Literal["causal", "bidirectional"] = "causal"  # among the H_v positions
    attend_padding: bool = True  # the token decoder attends to the zeros behind the kept tokens
    shortcut: bool = False  # tokens hold the grid's DCT coefficients, most important first, and their quality
    semantic_width: int = 0  # with `shortcut`: values of a token that the generator adds beside the code
    promised_psnr: float = 32.0  # with `shortcut`: EOS is predicted where a picture is that good, in dB
    gaussian: bool = False  # DOVE (Gaussian), appendix D: tokens through mean and log-variance heads
    query_vocab_size: int = 0  # text vocabulary of a query (Q-DOVE, 2.3); 0: the model has no query weights
    query_length: int = 0  # the most text tokens of a query; above 0 just where the model has query weights
    relevance: RelevanceConfig | None = None  # queries choose places (`models.relevance`), not the generator

    def __post_init__(self) -> None:
        _require(self, 1, "image_size")
        _require(self, 2, "vocab_size")
        _require(self, 0, "query_vocab_size", "query_length")
        if bool(self.query_vocab_size) != bool(self.query_length):
            raise ValueError(
                "query_vocab_size and query_length must both be 0 (no text queries) or both above 0, got "
                f"{self.query_vocab_size} and {self.query_length}"
            )
        if self.image_size % self.vqgan.downsampling:
            raise ValueError(
                f"image_size ({self.image_size}) must be a multiple of the downsampling "
                f"({self.vqgan.downsampling})"
            )
        if self.num_tokens > MAX_SLOTS:
            raise ValueError(
                f"image_size ({self.image_size}) makes {self.num_tokens} tokens an image, the limit is "
                f"{MAX_SLOTS}; choose a smaller one"
            )
        if self.generator.hidden != self.token_decoder.hidden:
            raise ValueError(
                "generator and token_decoder must share one hidden width, that of a token's code"
            )
        if not 0 <= self.eos_id < self.vocab_size:
            raise ValueError(f"eos_id {self.eos_id} is outside the vocabulary of {self.vocab_size}")
        if self.prefix_attention not in ("causal", "bidirectional"):
            raise ValueError(
                f"prefix_attention must be 'causal' or 'bidirectional', got {self.prefix_attention!r}"
            )
        if self.shortcut and not self.attend_padding:
            raise ValueError(
                "attend_padding=False needs shortcut=False: with it every slot carries part of the grid"
            )
        if self.shortcut and not self.vqgan.patch_shortcut:
            raise ValueError(
                "shortcut=True needs vqgan.patch_shortcut=True: the error that tokens leave is known for a "
                "linear code only"
            )
        _require(self, 0, "semantic_width")
        if self.semantic_width and not self.shortcut:
            raise ValueError(
                "semantic_width needs shortcut=True: without it the hidden states are the tokens"
            )
        if self.relevance is not None and not (self.shortcut and self.query_vocab_size):
            raise ValueError("relevance needs shortcut=True and query_vocab_size above 0")
        if self.relevance is not None and self.image_size % 32:
            raise ValueError(f"relevance needs an image_size that is a multiple of 32, got {self.image_size}")
        if not 0 < self.promised_psnr < 100:
            raise ValueError(f"promised_psnr must be between 0 and 100 dB, got {self.promised_psnr}")
        if not 0 < self.eos_prior < 1:
            raise ValueError(f"eos_prior must be between 0 and 1, got {self.eos_prior}")

    @property
    def grid(self) -> int:
        """Positions along one side of the latent grid."""
        return self.image_size // self.vqgan.downsampling

    @property
    def num_tokens(self) -> int:
        """K: time positions, which are also the token decoder's slots, one for each grid position."""
        return self.grid**2

    @property
    def token_width(self) -> int:
        """D: width of a token; with `shortcut` its code, quality and address, and what the generator adds."""
        return self.generator.hidden + (2 + self.semantic_width if self.shortcut else 0)

    @property
    def query_width(self) -> int:
        """Width of a query's embeddings."""
        return self.generator.hidden if self.relevance is None else self.relevance.word_width

    @property
    def promise(self) -> float | None:
        """`promised_psnr` of a model that promises a quality; None without a linear code."""
        return self.promised_psnr if self.shortcut else None

    def to_json(self) -> str:
        """The configuration as it stands in a model folder's config.json."""
        return _to_json("dove", self)

    @classmethod
    def from_json(cls, text: str, source: str = "config.json") -> DoveConfig:
        """Read `to_json`'s output; unknown fields and wrong types are refused.

        Raises:
            CheckpointError: naming `source`, the field and what is wrong.
        """
        config: DoveConfig = _from_json(cls, "dove", text, source)
        return config


def _to_json(model_type: str, config: Any) -> str:
    return json.dumps({"model_type": model_type, **dataclasses.asdict(config)}, indent=2) + "\n"


def _from_json(cls: Any, model_type: str, text: str, source: str) -> Any:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also integers of thousands of digits
        raise CheckpointError(f"{source} is not JSON ({error}); the model folder is damaged") from error
    found = values.pop("model_type", None) if isinstance(values, dict) else None
    if found != model_type:
        raise CheckpointError(
            f"{source} does not describe a {model_type} model: its model_type is {found!r}, "
            f"not {model_type!r}"
        )
    try:
        return build(cls, values)
    except UnknownFieldError as error:
        raise CheckpointError(f"{source}: {error}; was the model saved by a newer dove_ext?") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: {error}") from error


def change_shape(config: DoveConfig | VQGANConfig, changes: dict[str, Any]) -> DoveConfig | VQGANConfig:
    """A configuration with some fields changed, nested ones by nested dictionaries.

    Raises:
        ValueError: naming the field that is unknown, of the wrong type or out of range.
    """
    values = dataclasses.asdict(config)
    _merge(values, changes)
    try:
        return build(type(config), values)
    except UnknownFieldError as error:
        raise ValueError(f"{error}{error.hint}") from error


def _merge(values: dict[str, Any], changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(values.get(name), dict):
            _merge(values[name], value)
        else:
            values[name] = value


_TINY_STACK = StackConfig(hidden=256, layers=4, heads=4, mlp=864)  # so that float16 weights stay under 30 MB
_TINY_VQGAN = VQGANConfig(
    channels=64,
    channel_multipliers=(1, 2, 3),
    encoder_blocks=1,
    decoder_blocks=2,
    latent_channels=256,
    codebook_size=0,
    stem_patch=4,
    patch_shortcut=True,
)

PRESETS: dict[str, DoveConfig] = {
    # The paper's shape: VQGAN f16 and two Pythia-70M stacks.
    "dove-base": DoveConfig(),
    # The same with a text query in the sequence: words of the GPT-NeoX encoding, as Pythia reads them.
    "dove-base-q": DoveConfig(name="dove-base-q", query_vocab_size=50304, query_length=64),
    # Small enough to ship and to run on a laptop; trained from scratch.
    "dove-tiny": DoveConfig(
        name="dove-tiny",
        vqgan=dataclasses.replace(_TINY_VQGAN, encoder_blocks=0),
        generator=_TINY_STACK,
        token_decoder=_TINY_STACK,
        vocab_size=2,
        head_bias=True,
        shortcut=True,
        semantic_width=254,
    ),
}
# The same with a map of where a query points; the words are its tokenizer's.
PRESETS["dove-tiny-q"] = dataclasses.replace(
    PRESETS["dove-tiny"],
    name="dove-tiny-q",
    query_vocab_size=18432,
    query_length=64,
    relevance=RelevanceConfig(),
)


# The fixed-length baselines: a VQGAN alone, with its quantiser.
VQGAN_PRESETS: dict[str, VQGANConfig] = {
    "vqgan-base": VQGANConfig(),
    # dove-tiny's autoencoder with a codebook of as many codes as the published scene models have.
    "vqgan-tiny": dataclasses.replace(_TINY_VQGAN, codebook_size=8192),
}

# The controls of `encode` that choose an image's length by itself; a `token_budget` is shared with others.
IMAGE_LENGTHS = ("num_tokens", "min_tokens", "max_tokens", "eos_threshold", "target_psnr")
DEFAULT_MODEL = "dove-tiny"  # what `dove_ext.encode` and the `dove` command use


def preset(name: str) -> DoveConfig:
    """A preset's configuration by name ("dove-base", "dove-base-q", "dove-tiny", "dove-tiny-q").

    Raises:
        ValueError: listing the known names.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset is named {name!r}; known are {', '.join(PRESETS)}")
    return PRESETS[name]
