"""Images' tokens on disk, so that a frozen encoder sees each picture once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from dove_ext.errors import ImageError, TokensError
from dove_ext.models.dove import DoveModel
from dove_ext.models.pretrained import weights_digest
from dove_ext.tokens import DoveTokens
from dove_train.settings import TrainingError


class TokenCache:
    """A file an image, whose name tells the encoder, its options, the picture's file and the query.

    Args:
        folder: where they lie; made when the first is written.
        dove: the encoder.
        options: of `DoveModel.encode`, the same for all images.
        dtype: of the tokens, whether they come from a file or not.
    """

    def __init__(self, folder: Path, dove: DoveModel, options: dict[str, Any], dtype: torch.dtype) -> None:
        self.folder, self.dove, self.options, self.dtype = folder, dove, options, dtype

    @cached_property
    def _encoder(self) -> bytes:
        dove = self.dove
        file = "" if dove.tokenizer is None else dove.tokenizer.file
        weights = weights_digest(dove.state_dict())
        about = repr((sorted(self.options.items()), self.dtype, dove.config.to_json(), file, weights))
        return blake2b(about.encode("utf-8", "surrogatepass"), digest_size=16).digest()

    def path(self, image: Path, query: str | None) -> Path:
        """Where the tokens of an image lie.

        Raises:
            ImageError: if there is no such image.
        """
        try:
            about = image.stat()
        except OSError as error:
            raise ImageError(f"{str(image)!r} cannot be read: {error.strerror}") from error
        digest = blake2b(self._encoder, digest_size=16)
        digest.update(
            repr((str(image.resolve()), about.st_size, about.st_mtime_ns, query)).encode(
                "utf-8", "surrogatepass"
            )
        )
        name = digest.hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def __call__(self, images: Sequence[Path], query: str | None = None) -> DoveTokens:
        """Tokens of the images, on the CPU.

        An image is encoded alone, so its tokens do not depend on what else is asked for; a damaged file is
        written anew.

        Raises:
            ImageError: if a picture cannot be used.
            QueryError: if the query cannot.
            TrainingError: if the tokens are not finite.
        """
        found = []
        for image in images:
            path = self.path(image, query)
            tokens = self._load(path)
            if tokens is None:
                tokens = self.dove.encode([image], query=query, **self.options).to("cpu", self.dtype)
                if not tokens.tokens.isfinite().all():
                    raise TrainingError(
                        f"{image} has tokens that are not finite in {self.dtype}; set bf16: false"
                    )
                path.parent.mkdir(parents=True, exist_ok=True)
                tokens.save(path)
            found.append(tokens)
        return DoveTokens.cat(found)

    def _load(self, path: Path) -> DoveTokens | None:
        if not path.is_file():
            return None
        try:
            tokens = DoveTokens.load(path)
            tokens.require(self.dove.config.token_width, self.dove.config.num_tokens)
        except TokensError:
            return None
        pictures = len(tokens) if tokens.tiles is None else len(tokens.tiles.pictures)
        return tokens if pictures == 1 and tokens.dtype == self.dtype else None
