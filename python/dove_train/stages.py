"""The paths through a model that a stage can train, and which parameters its parts are."""

from __future__ import annotations

import copy
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dove_ext.errors import CheckpointError
from dove_ext.models.dove import DoveModel
from dove_ext.models.query import Query
from dove_ext.models.relevance import RelevanceMap
from dove_ext.models.stack import Layer
from dove_ext.models.vqgan import VQGAN, Level
from dove_train.alignment import Alignment
from dove_train.length_sampling import DEFAULT_TARGET
from dove_train.pointing import ClassEvidence, Pointed, classifier_file, point, read_classifier
from dove_train.settings import Settings, Stage, TrainingError
from dove_train.teachers import TEACHER_STRIDE, Teacher, make_teacher


class Outputs(NamedTuple):
    """What a pass gives the losses; what a path does not have is None."""

    reconstruction: Tensor | None = None  # [B, 3, S, S]
    lengths: Tensor | None = None  # int32 [B], tokens that were kept
    stops: Tensor | None = None  # int32 [B], position of the model's EOS from 0, K without one
    p_eos: Tensor | None = None  # float32 [B, K]
    divergence: Tensor | None = None  # float32 [B, K], KL of the Gaussian variant's tokens
    latents: Tensor | None = None  # [B, P, C], before the quantiser
    codes: Tensor | None = None  # [B, P, C], chosen by it
    indices: Tensor | None = None  # int64 [B, P]
    alignment: Tensor | None = None  # float32 [B], distance from the teacher's features
    margin: Tensor | None = None  # float32 [B], dB above the promised PSNR that the pictures need
    pointed: Pointed | None = None  # a relevance map's answers


class TokensPass(nn.Module):
    """Image -> latents -> tokens -> truncation -> latents -> image (Eq. 1).

    Args:
        model: is run.
        around_stops: keep half of the images' sampled lengths, and move the others to within `NEAR` tokens of
            the model's own: for a head whose labels are in doubt nowhere else.
    """

    def __init__(self, model: DoveModel, *, around_stops: bool = False) -> None:
        super().__init__()
        self.model, self.around_stops = model, around_stops

    def forward(
        self,
        pixels: Tensor,
        lengths: Tensor | None,
        total: int | None = None,
        query: tuple[Tensor, Tensor | None] | None = None,
    ) -> Outputs:
        """One pass over [B, 3, S, S] in [-1, 1].

        Args:
            pixels: [B, 3, S, S] in [-1, 1].
            lengths: int32 [B], None: the model's own.
            total: the sum of `lengths`, see `DoveModel.render`.
            query: fields of a `Query` on the pixels' device; None: "null", if the model reads queries.
        """
        model, generator = self.model, self.model.generator
        asked = None if query is None else Query(*query)
        tokens, hidden, condition = model.generate(model.condition(pixels, asked))
        p_eos, stops = generator.p_eos(hidden), generator.first_stop(hidden.detach())
        kept = stops.clamp_min(1) if lengths is None else lengths
        if lengths is not None and self.around_stops:
            kept, total = around(stops, lengths, p_eos.shape[1]), None
        divergence = generator.divergence(hidden, condition) if model.config.gaussian else None
        image = model.render(tokens, kept, total=total)
        return Outputs(image, kept, stops, p_eos, divergence, margin=condition.margin)


NEAR = 8  # tokens


def around(stops: Tensor, lengths: Tensor, slots: int) -> Tensor:
    """Sampled lengths int32 [B], the odd ones moved to near the image's own stop, but for full lengths.

    Whether, and by how many tokens, the sampled length itself decides: it depends on the image's place in the
    run alone, not on its batch or process.
    """
    near = (stops + lengths % (2 * NEAR + 1) - NEAR).clamp(1, slots - 1)
    moved = (lengths % 2 == 1) & (lengths < slots)
    return torch.where(moved, near, lengths).int()


class AutoencoderPass(nn.Module):
    """Image -> latents (-> nearest codes) -> image: the VQGAN alone."""

    def __init__(self, vqgan: VQGAN) -> None:
        super().__init__()
        self.vqgan = vqgan

    def forward(self, pixels: Tensor, lengths: Tensor | None = None, total: int | None = None) -> Outputs:
        """One pass over [B, 3, S, S] in [-1, 1]."""
        latents = self.vqgan.encode(pixels)
        if self.vqgan.quantize is None:
            return Outputs(self.vqgan.decode(latents))
        quantised, indices = self.vqgan.quantize(latents)
        codes = self.vqgan.quantize.embedding(indices)
        return Outputs(self.vqgan.decode(quantised), latents=latents, codes=codes, indices=indices)


class AlignedAutoencoderPass(nn.Module):
    """The VQGAN alone, whose latents (quantised, if they are) also predict a teacher's features."""

    def __init__(self, vqgan: VQGAN, alignment: Alignment) -> None:
        super().__init__()
        self.autoencoder, self.alignment = AutoencoderPass(vqgan), alignment

    def forward(self, pixels: Tensor, draws: Tensor, count: int) -> Outputs:
        """One pass over [B, 3, S, S] in [-1, 1].

        Args:
            pixels: [B, 3, S, S] in [-1, 1]; these are reconstructed.
            draws: `draw_views` of these images; the views' latents are what predicts.
            count: means nothing here.
        """
        outputs: Outputs = self.autoencoder(pixels)
        sharp, seen = self.alignment.views(pixels, draws)
        vqgan = self.autoencoder.vqgan
        latents = vqgan.encode(seen)
        if vqgan.quantize is not None:
            latents, _ = vqgan.quantize(latents)
        return outputs._replace(alignment=self.alignment(latents, sharp))


class FeaturesPass(nn.Module):
    """Image -> latents -> hidden states and tokens of the generator, compared with a teacher's features."""

    def __init__(self, model: DoveModel, alignment: Alignment) -> None:
        super().__init__()
        self.model, self.alignment = model, alignment

    def forward(self, pixels: Tensor, draws: Tensor, count: int) -> Outputs:
        """One pass over [B, 3, S, S] in [-1, 1].

        Args:
            pixels: [B, 3, S, S] in [-1, 1].
            draws: `draw_views` of these images.
            count: tokens that are made, if any are aligned.
        """
        sharp, seen = self.alignment.views(pixels, draws)
        generator = self.model.generator
        if self.alignment.reader is None:
            latents = self.model.vqgan.encode(seen)
            states, said = generator.image_states(latents, len(generator.stack.layers) - 1), None
        else:
            states, hidden = generator.image_states_and_forward(self.model.condition(seen), count)
            said = generator.semantics(hidden)
        return Outputs(alignment=self.alignment(states, sharp, said))


class RelevancePass(nn.Module):
    """Image and query -> relevance of each place, beside what the map's teacher sees."""

    def __init__(self, relevance: RelevanceMap, teacher: ClassEvidence) -> None:
        super().__init__()
        self.relevance, self.teacher = relevance, teacher

    def forward(self, pixels: Tensor, draws: Tensor, query: tuple[Tensor, Tensor | None, Tensor]) -> Outputs:
        """One pass over [B, 3, S, S] in [-1, 1].

        Args:
            pixels: [B, 3, S, S] in [-1, 1].
            draws: `draw_classes` of these images.
            query: fields of a `Query` of N rows, and the image of each, int64 [N].
        """
        *asked, owners = query
        return Outputs(pointed=point(self.relevance, self.teacher, pixels, draws, Query(*asked), owners))


def pixels_of(model: DoveModel | VQGAN) -> int:
    """Pixels along a side of what a model is trained on."""
    return 256 if isinstance(model, VQGAN) else model.config.image_size


def make_pass(
    model: DoveModel | VQGAN, stage: Stage, settings: Settings
) -> TokensPass | AutoencoderPass | AlignedAutoencoderPass | FeaturesPass | RelevancePass:
    """The path that a stage trains.

    Raises:
        TrainingError: if the model has no tokens or fewer than the length aimed at, the crop is no whole
            number of latents, the backbone's weights cannot be had, or it reads no queries and should.
        QueryError: if its tokenizer is missing.
    """
    vqgan = model if isinstance(model, VQGAN) else model.vqgan
    if stage.path == "autoencoder":
        if stage.crop % vqgan.config.downsampling:
            raise TrainingError(
                f"a stage's crop must be a multiple of {vqgan.config.downsampling}, the pixels along a "
                f"latent of this model; got {stage.crop}"
            )
        if settings.alignment_weight:
            side = stage.crop or pixels_of(model)
            if side % TEACHER_STRIDE:
                raise TrainingError(
                    f"a stage's crop must be a multiple of {TEACHER_STRIDE}, the pixels along a place of the "
                    f"teacher; got {side}"
                )
            grid = side // vqgan.config.downsampling
            alignment = Alignment(vqgan.config.latent_channels, grid, _teacher(settings))
            return AlignedAutoencoderPass(vqgan, alignment)
        return AutoencoderPass(vqgan)
    if isinstance(model, VQGAN):
        raise TrainingError("a VQGAN has no tokens: its stages need path: autoencoder")
    if stage.path == "features":
        width = model.config.semantic_width if "tokens" in stage.train else 0
        hidden, grid = model.config.generator.hidden, model.config.grid
        return FeaturesPass(model, Alignment(hidden, grid, _teacher(settings), token_width=width))
    if stage.train == ["relevance"]:
        return _relevance_pass(model, settings)
    if stage.path == "query":
        if not model.config.query_vocab_size or model.config.shortcut:
            raise TrainingError(
                "a stage of path 'query' needs a model that reads queries (--preset dove-base-q, or --shape "
                "query_vocab_size=N query_length=N) and has no linear code; of a model with a relevance map "
                "give it train: [relevance]"
            )
        model.queries(None, 1)  # a tokenizer that is missing or damaged says so now
    if model.config.shortcut and settings.target_length:
        raise TrainingError(
            f"target_length is {settings.target_length:g}, but this model has a linear code and promises a "
            f"quality; leave it out, or set --shape promised_psnr (now {model.config.promised_psnr:g} dB)"
        )
    # The threshold would fall without end: no length reaches the target.
    target = settings.target_length or DEFAULT_TARGET
    if settings.eos_rule == "sampled" and not model.config.shortcut and target > model.config.num_tokens:
        raise TrainingError(
            f"target_length is {target:g}, but this model has {model.config.num_tokens} "
            "tokens at most; give a smaller --target-length"
        )
    renders = {"decoder", "token_decoder", "encoder", "linear"}
    return TokensPass(model, around_stops=model.config.shortcut and not renders & set(stage.train))


def _teacher(settings: Settings) -> Teacher:
    try:
        return make_teacher(settings.teacher, settings.alignment_weights)
    except CheckpointError as error:
        raise TrainingError(
            f"feature distillation needs the weights of {settings.teacher} (--alignment-weights): {error}"
        ) from error


def _relevance_pass(model: DoveModel, settings: Settings) -> RelevancePass:
    relevance, tokenizer = model.relevance, model.tokenizer
    if relevance is None or tokenizer is None:
        raise TrainingError(
            "a stage trains 'relevance', which needs a model with a relevance map and its tokenizer "
            "(--preset dove-tiny-q)"
        )
    try:
        # The backbone is the file's already; it is read again for the classifier's end.
        backbone = copy.deepcopy(relevance.backbone)
        classifier = read_classifier(classifier_file(settings.classifier), backbone)
    except CheckpointError as error:
        raise TrainingError(f"a stage that trains a relevance map needs its classifier: {error}") from error
    return RelevancePass(relevance, ClassEvidence(classifier, tokenizer).to(model.device))


def parts_of(model: DoveModel | VQGAN) -> dict[str, list[nn.Module | None]]:
    """The modules behind the names that a stage's `train` lists.

    `linear` is the linear code that the closed form fits. It is a part of its own, and the recipes do not
    train it: Adam moves every weight by about the learning rate whatever its gradient, and that much noise
    drowns the finest coefficients, which are a thousandth of the coarsest.
    `tokens` is what makes the semantic part of the tokens from hidden states, and the heads of the Gaussian
    variant; a model with neither, whose hidden states are the tokens, has no such part.
    `features` is the generator up to its last but one layer, which the path of that name trains; `last_layer`
    is the rest of it, which can learn where to stop without changing those features. `upper_layers` are the
    last two without what the time positions read, so that no gradient passes the layers below.
    """
    vqgan = model if isinstance(model, VQGAN) else model.vqgan
    parts: dict[str, list[nn.Module | None]] = {
        "encoder": [vqgan.encoder, vqgan.quant_conv],
        "decoder": [vqgan.decoder, vqgan.post_quant_conv],
        "codebook": [vqgan.quantize],
        "linear": [vqgan.patch_in, vqgan.patch_out],
    }
    if isinstance(model, DoveModel):
        generator = model.generator
        parts["linear"].append(model.shortcut)
        parts["generator"] = [generator.from_latent, generator.from_token, generator.stack]
        *first, last = generator.stack.layers
        norm = generator.stack.final_layer_norm
        parts["features"] = [generator.from_latent, *first]
        parts["upper_layers"] = [*first[-1:], last, norm]
        parts["last_layer"] = [generator.from_token, last, norm]
        parts["tokens"] = [generator.to_token, generator.mean, generator.log_variance]
        parts["token_decoder"] = [model.token_decoder]
        parts["head"] = [generator.embed_out]
        parts["query"] = [generator.embed_in]
        if model.relevance is not None:  # words and backbone stay as they were made
            fixed = (model.relevance.backbone, model.relevance.words)
            parts["relevance"] = [m for m in model.relevance.children() if m not in fixed]
    return parts


def trained_parameters(model: DoveModel | VQGAN, stage: Stage) -> list[nn.Parameter]:
    """The parameters that a stage trains; overlapping parts are counted once.

    Raises:
        TrainingError: if the model lacks one of the stage's parts.
    """
    parts, trained = parts_of(model), dict[nn.Parameter, None]()
    for name in stage.train:
        modules = [m for m in parts.get(name, []) if m is not None]
        if not modules:
            raise TrainingError(f"a stage trains {name!r}, which this model does not have; leave it out")
        for module in modules:
            trained |= dict.fromkeys(module.parameters())
    return list(trained)


def recompute_activations(path: nn.Module) -> None:
    """Keep only what enters each transformer layer and each VQGAN level; compute the rest again."""
    for module in path.modules():
        # A path of an earlier stage may have wrapped it already.
        if isinstance(module, (Layer, Level)) and not isinstance(module.forward, partial):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)  # type: ignore[method-assign]
