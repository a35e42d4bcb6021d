"""The words of a relevance map: a tokenizer that reads any text, and embeddings from a sentence encoder.

A sentence encoder knows which words mean alike, and is several times as large as the model. So each word is
embedded once, alone, and only the directions in which most of them differ are kept. A query is the sum of its
words; the more common a word is, the less it adds (Arora et al. 2017, smooth inverse frequency).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dove_ext.images.mosaics import plural
from dove_ext.models.relevance import NULL_WORD
from dove_ext.models.text import NULL
from dove_train.settings import TrainingError

MOST_NAMES = 3000  # words of names that the encoder's vocabulary has no entry for
PIECES = 2500  # ends of words, by which others are spelled
RARE = 1e-3  # share of all words; one this rare counts half. Shares are by rank, 1 / (10 rank)
_SPACE = "▁"
_COSTS = {"unknown": -30.0, "byte": -25.0, "word": -10.0, "piece": -11.0}  # few, long pieces win


def make_words(encoder: Path, texts: Iterable[str], size: int, width: int) -> tuple[str, Tensor]:
    """A tokenizer and its embeddings.

    Args:
        encoder: folder of a sentence encoder of BERT's kind for transformers, such as all-MiniLM-L6-v2.
        texts: names of things, whose words are taken besides the encoder's most common ones.
        size: words and pieces.
        width: of an embedding.

    Returns:
        (str, Tensor): text of a tokenizer.json with exactly `size` entries, `NULL_WORD` that of "null";
        and float32 [size, width].

    Raises:
        TrainingError: if the folder holds no such encoder, or `size` is too small.
    """
    embed, vocabulary = _encoder(encoder)
    known = [word for word in vocabulary if re.fullmatch("[a-z]+", word) and word != NULL]
    ends = [word[2:] for word in vocabulary if re.fullmatch("##[a-z]+", word)][:PIECES]
    letters = [letter for letter in "abcdefghijklmnopqrstuvwxyz" if letter not in ends]
    ends = [*ends, *letters]
    names = _words(texts, set(known))
    first = NULL_WORD + 1 + 256
    fixed = first + len(names) + len(ends)
    if not fixed < size <= fixed + len(known):
        raise TrainingError(
            f"query_vocab_size {size} cannot be filled: with {len(names)} words of names and {len(ends)} "
            f"pieces it must be {fixed + 1} to {fixed + len(known)}"
        )
    common = known[: size - fixed]
    words = [*common, *names]
    of_words = embed(words)
    of_ends = embed(ends)
    mean = of_words.mean(0)
    _, _, directions = torch.pca_lowrank(of_words - mean, width, center=False, niter=6)
    rank = {word: i + 1 for i, word in enumerate(known)}
    ranks = torch.tensor([rank.get(word, len(known)) for word in [*words, *ends]], dtype=torch.float32)
    share = 1 / (10 * ranks)
    weight = RARE / (RARE + share)
    weight[len(words) :] /= 2  # a piece says less than a word
    table = torch.zeros(size, width)
    table[first:] = ((torch.cat([of_words, of_ends]) - mean) @ directions) * weight[:, None]
    return _tokenizer(words, ends), table


def _words(texts: Iterable[str], known: set[str]) -> list[str]:
    """The words of texts, and their plurals, that are not known, most frequent first."""
    counts: Counter[str] = Counter()
    for text in texts:
        for word in re.findall("[a-z]+", text.lower()):
            counts[word] += 1
            counts[plural(word)] += 0
    return [word for word, _ in counts.most_common() if word not in known and word != NULL][:MOST_NAMES]


def _encoder(folder: Path) -> tuple[Any, list[str]]:
    """What embeds words, float32 [n, hidden] of length 1, and the vocabulary, most common first."""
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise TrainingError("words are embedded by transformers: pip install transformers") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        model = AutoModel.from_pretrained(str(folder), local_files_only=True).eval()
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise TrainingError(
            f"{str(folder)!r} holds no sentence encoder for transformers ({reason}); give another folder"
        ) from error

    @torch.no_grad()
    def embed(words: Sequence[str]) -> Tensor:
        parts = []
        for i in range(0, len(words), 256):
            batch = tokenizer(list(words[i : i + 256]), padding=True, return_tensors="pt")
            states, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
            parts.append(F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1))
        return torch.cat(parts)

    ids = tokenizer.get_vocab()
    return embed, sorted(ids, key=lambda word: ids[word])


def _tokenizer(words: Sequence[str], ends: Sequence[str]) -> str:
    """Whole words where they are known, else their pieces, and bytes for what is left."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    vocabulary = [("<unk>", _COSTS["unknown"]), (_SPACE + NULL, _COSTS["word"])]
    vocabulary += [(f"<0x{byte:02X}>", _COSTS["byte"]) for byte in range(256)]
    vocabulary += [(_SPACE + word, _COSTS["word"]) for word in words]
    vocabulary += [(end, _COSTS["piece"]) for end in ends]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    marks = pre_tokenizers.Split(Regex(rf"[^\p{{L}}\p{{N}}{_SPACE}]"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), marks])
    text: str = tokenizer.to_str()
    return text
