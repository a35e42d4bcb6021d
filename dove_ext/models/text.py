"""Text to the ids of a query, by the `tokenizer.json` that lies in a model's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch

from dove_ext.config import DoveConfig
from dove_ext.errors import CheckpointError, QueryError
from dove_ext.models.pretrained import TOKENIZER
from dove_ext.models.query import Query

Asked: TypeAlias = str | Sequence[str | None] | Query | None
"""What a user may ask, see `DoveModel.encode`."""

NULL = "null"
"""The query that asks for the whole picture; half of the queries in training are this text (2.3)."""


class QueryTokenizer:
    """A tokenizer of the library `tokenizers`, read when the first text comes.

    Args:
        file: the text of its `tokenizer.json`.
        source: how an error calls that file.
        vocab_size: ids that the model embeds.
        most: the most ids of a query.
    """

    def __init__(self, file: str, source: str, vocab_size: int, most: int) -> None:
        self.file, self.source = file, source
        self.vocab_size, self.most = vocab_size, most
        self._made: Any = None

    @classmethod
    def read(cls, path: Path, config: DoveConfig) -> QueryTokenizer:
        """Of a file, for a model of this configuration.

        Raises:
            CheckpointError: if it cannot be read as text.
            QueryError: if the model has no use for it.
        """
        if not config.query_vocab_size:
            raise QueryError(no_weights(config, "tokenizer"))
        try:
            file = path.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}); put the tokenizer's file there again"
            ) from error
        return cls(file, str(path), config.query_vocab_size, config.query_length)

    def __call__(self, texts: Sequence[str | None]) -> Query:
        """The queries of as many images, on the CPU; None is `NULL`.

        Raises:
            QueryError: if one is empty, too long or no text, or `tokenizers` is not installed.
            CheckpointError: if the file is damaged or another model's.
        """
        tokenizer = self._tokenizer()
        asked = [NULL if text is None else text for text in texts]
        one, known = len(set(asked)) == 1, dict[str, list[int]]()
        for number, text in enumerate(asked):
            if text not in known:
                known[text] = self._ids(tokenizer, text, "query" if one else f"query {number}")
        rows = [known[text] for text in asked]
        lengths = [len(row) for row in rows]
        most = max(lengths, default=1)
        ids = torch.tensor([row + [0] * (most - len(row)) for row in rows], dtype=torch.int64)
        even = min(lengths, default=most) == most
        return Query(ids.view(len(rows), most), None if even else torch.tensor(lengths, dtype=torch.int32))

    def _ids(self, tokenizer: Any, text: str, name: str) -> list[int]:
        if not text.strip():
            raise QueryError(f"{name} is empty; for the whole picture pass None or leave it out")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise QueryError(
                f"{name} is not valid Unicode text ({error.reason}); write it in UTF-8"
            ) from error
        ids: list[int] = tokenizer.encode(text).ids
        if not ids:
            raise QueryError(f"nothing of {name} is known to this model's tokenizer; write it in other words")
        if len(ids) > self.most:
            raise QueryError(
                f"{name} has {len(ids)} tokens, this model takes {self.most} at most; shorten it"
            )
        return ids

    def _tokenizer(self) -> Any:
        if self._made is not None:
            return self._made
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise QueryError(
                "text queries need the library tokenizers: pip install 'dove-ext[query]'"
            ) from error
        try:
            made = Tokenizer.from_str(self.file)
        except Exception as error:  # of no class of its own
            raise CheckpointError(
                f"{self.source} is no tokenizer ({error}); the model folder is damaged"
            ) from error
        largest = max(made.get_vocab(with_added_tokens=True).values(), default=-1)
        if not 0 <= largest < self.vocab_size:
            raise CheckpointError(
                f"{self.source} has ids up to {largest}, this model embeds {self.vocab_size} "
                "(query_vocab_size); the two do not belong together"
            )
        made.no_truncation()  # refused instead
        made.no_padding()
        made.encode_special_tokens = True  # "<|endoftext|>" in somebody's query is only text
        self._made = made
        return made

    def __reduce__(self) -> tuple[Any, ...]:  # copies read the file again
        return QueryTokenizer, (self.file, self.source, self.vocab_size, self.most)


def no_weights(config: DoveConfig, what: str) -> str:
    """The sentence for a model without query weights that was given something of a query."""
    return (
        f"{config.name!r} has no weights for text queries (query_vocab_size is 0); leave the {what} out, or "
        "use a model that has them, such as dove-tiny-q"
    )


def is_null(query: Asked) -> bool:
    """Whether nothing but the whole picture is asked for."""
    if query is None or isinstance(query, str):
        return query in (None, NULL)
    return not isinstance(query, Query) and len(query) > 0 and all(text in (None, NULL) for text in query)


def check_count(texts: Sequence[str | None], count: int) -> None:
    """Refuse texts that are not one an image.

    Raises:
        QueryError: if they are not.
    """
    if len(texts) != count:
        raise QueryError(f"query has {len(texts)} rows for {count} images; give one row an image")


def queries(query: Asked, count: int, config: DoveConfig, tokenizer: QueryTokenizer | None) -> Query | None:
    """What stands between images and their time positions (Q-DOVE, 2.3).

    Args:
        query: as for `DoveModel.encode`.
        count: images.
        config: of the model.
        tokenizer: of the model.

    Returns:
        Query | None: one row an image; texts are on the CPU. None: nothing, in a model without query weights.

    Raises:
        QueryError: if a query cannot be used, or not with this model.
        CheckpointError: if the tokenizer is damaged.
    """
    if isinstance(query, Query):
        query.check(count, config)
        return query
    if query is None and not config.query_vocab_size:
        return None  # whatever the count, which an exported graph does not know
    texts = [query] * count if query is None or isinstance(query, str) else query
    if not isinstance(texts, list | tuple) or not all(t is None or isinstance(t, str) for t in texts):
        raise QueryError(
            "query must be a text, a list with a text or None for each image, or a `Query` of ids or "
            "embeddings"
        )
    check_count(texts, count)
    if not config.query_vocab_size:
        if any(text is not None for text in texts):
            raise QueryError(no_weights(config, "query"))
        return None
    if tokenizer is None:
        raise QueryError(
            f"{config.name!r} reads text queries and has no tokenizer; put its {TOKENIZER} into the model's "
            "folder, or name the file in `load_tokenizer`"
        )
    return tokenizer(texts)
