"""All that reads strangers' bytes, each as a function of bytes that may raise nothing but a DoveError."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache, partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import torch
import yaml  # noqa: F401  (read_recipe imports it late; here it is instrumented)
from PIL import Image

from dove_data import Settings, TokenDataset, TokenStream, tokenize
from dove_data.checking import verify
from dove_data.manifest import file_checksum
from dove_data.plan import KEYS, MANIFEST, PLAN, begin
from dove_data.settings import DataError
from dove_ext import DoveConfig, DoveModel, DoveTokens, StackConfig
from dove_ext.errors import DoveError
from dove_ext.images import tables
from dove_ext.images.files import read_stream
from dove_ext.images.index import ImageIndex
from dove_ext.models.pretrained import fit_weights, load_config, read_all_weights
from dove_ext.tokens.mapped import MappedTokens
from dove_instruct.conversations import read_conversations
from dove_instruct.settings import make_settings as make_instruct_settings
from dove_train.settings import make_settings, read_recipe
from tests.models.micro import MICRO, asked, linear, micro, photos

ROOT = Path(__file__).resolve().parents[2]


class Target(NamedTuple):
    """What is fuzzed.

    Fields:
        run: reads the bytes.
        seeds: inputs to start from.
        words: a dictionary: what a blind change would hardly hit upon.
    """

    run: Callable[[bytes], None]
    seeds: Callable[[], Iterator[bytes]]
    words: tuple[str, ...] = ()


@cache
def _held() -> tempfile.TemporaryDirectory[str]:
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(
        prefix="dove-fuzz-", dir=memory if os.access(memory, os.W_OK) else None
    )


def _room() -> Path:
    """A folder for what must be read from a file; in memory where there is such a place."""
    return Path(_held().name)


def _file(name: str, data: bytes) -> Path:
    path = _room() / name
    path.write_bytes(data)
    return path


def try_one(target: Target, data: bytes) -> str:
    """Read an input; what was wrong with it, in one line, or "" where it was read.

    Raises:
        Exception: any but a `DoveError`: a fault of ours, as is a message of several lines or without end.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            target.run(data)
        except DoveError as error:
            return _sentence(str(error))
    return ""


def _sentence(text: str) -> str:
    assert text and "\n" not in text and len(text) < 2000, f"not one sentence: {text[:3000]!r}"
    return text


@contextmanager
def _refusals() -> Iterator[None]:
    """Of one part of several: what is refused is looked at, and passed over."""
    try:
        yield
    except DoveError as error:
        _sentence(str(error))


def _with_length(data: bytes) -> bytes:
    """A safetensors file from its header, a zero byte, and what is behind it: its length fits."""
    header, _, rest = data.partition(b"\0")
    return len(header).to_bytes(8, "little") + header + rest


def _without_length(file: bytes) -> bytes:
    length = int.from_bytes(file[:8], "little")
    return file[8 : 8 + length] + b"\0" + file[8 + length :]


# --- Token files --------------------------------------------------------------------------------------------


def _tokens(data: bytes) -> None:
    """The first byte says whether what follows is the file or comes without its first length."""
    data = _with_length(data[1:]) if data[:1] == b"H" else data[1:]
    path = _file("tokens.safetensors", data)
    with _refusals():
        for row in range(min(3, len(mapped := MappedTokens(path)))):
            mapped[row]
    tokens = DoveTokens.load(path)
    tokens.to_padded()
    again = _room() / "again.safetensors"
    tokens.save(again)
    assert torch.equal(DoveTokens.load(again).tokens, tokens.tokens)


def _token_files() -> Iterator[bytes]:
    model = micro()
    path = _room() / "seed.safetensors"
    for made in (
        model.encode(photos(2), num_tokens=2),
        linear().encode(photos(1), target_psnr=20, return_p_eos=True),
        model.encode([photos(1)[0].repeat(1, 2, 3)], tiles=6, num_tokens=7),
    ):
        made.save(path)
        yield b"H" + _without_length(path.read_bytes())
        yield b"F" + path.read_bytes()


# --- Model folders ------------------------------------------------------------------------------------------

_PARTS = {b"C": "config.json", b"T": "tokenizer.json", b"W": "model.safetensors"}
_WHOLE = 64  # of so many inputs one is read by `from_pretrained`


@cache
def _folder() -> Path:
    folder = _room() / "model"
    stack = StackConfig(hidden=32, layers=1, heads=1, mlp=32)
    small: dict[str, Any] = {"channels": 32, "channel_multipliers": (1,), "stem_patch": 4}
    vqgan = dataclasses.replace(MICRO.vqgan, encoder_blocks=0, patch_shortcut=True, **small)
    asked(_room(), generator=stack, token_decoder=stack, vqgan=vqgan).save_pretrained(folder)
    return folder


@lru_cache(maxsize=4096)
def _refusal(config: DoveConfig) -> DoveError | None:
    """What is wrong with a model of a configuration and the good weights."""
    try:
        DoveModel.of_weights(config, read_all_weights(_folder()), "'model.safetensors'")
    except DoveError as error:
        return error.with_traceback(None)
    return None


def _model(data: bytes) -> None:
    """The first byte says which file; of weights only the header, the tensors are its own.

    To build a model takes far longer than to read one, so the steps of `from_pretrained` are taken one by
    one, on one that is there where that does: only a configuration that was not met yet builds its own.
    """
    part, content = _PARTS.get(data[:1]), data[1:]
    if part is None:
        return
    good = _folder() / part
    model, before = _asked(), _good(part)
    if part == "model.safetensors":
        content = _with_length(content + b"\0" + _without_length(before).partition(b"\0")[2])
    try:
        good.write_bytes(content)
        if crc32(data) % _WHOLE == 0:
            model = DoveModel.from_pretrained(_folder())
        elif part == "config.json":
            if (refusal := _refusal(load_config(_folder(), DoveConfig))) is not None:
                raise refusal
        elif part == "model.safetensors":
            weights = read_all_weights(_folder())
            fit_weights(model, weights, "'model.safetensors'")
            model.load_state_dict(weights)
        if part == "tokenizer.json":
            model.load_files(_folder())
            query = model.queries("red dog", 1)
            assert query is not None and int(query.values.min()) >= 0
            assert int(query.values.max()) < model.config.query_vocab_size
    finally:
        good.write_bytes(before)


@cache
def _good(part: str) -> bytes:
    return (_folder() / part).read_bytes()


def _model_files() -> Iterator[bytes]:
    for letter, part in _PARTS.items():
        content = (_folder() / part).read_bytes()
        yield letter + (_without_length(content).partition(b"\0")[0] if letter == b"W" else content)


# --- Pictures and shards ------------------------------------------------------------------------------------


def _picture(data: bytes) -> None:
    read_stream(io.BytesIO(data), "'picture'")


_FORMATS = {
    "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"),
    "JPEG": ("RGB", "L", "CMYK"),
    "GIF": ("P",),
    "BMP": ("RGB", "1"),
    "TIFF": ("RGB", "L", "F", "I", "P"),
    "WEBP": ("RGB", "RGBA"),
    "PPM": ("RGB", "L"),
}


def _pictures() -> Iterator[bytes]:
    picture = Image.fromarray(photos(1)[0].permute(1, 2, 0).numpy()).resize((9, 7))
    for form, modes in _FORMATS.items():
        for mode in modes:
            out = io.BytesIO()
            (
                picture.convert("L").convert(mode) if mode in ("I;16", "I", "F") else picture.convert(mode)
            ).save(out, form)
            yield out.getvalue()


def _shard(data: bytes) -> None:
    index = ImageIndex([_file("shard.tar", data)])
    for i in range(min(len(index), 8)):
        index.name(i), index.short_name(i)
        with _refusals():
            index.read(i)


def _parquet(data: bytes) -> None:
    """Pictures, keys and queries; the first byte says what the pictures are called by."""
    tables._cursors.clear()  # which know the file that lay there before
    key = {b"K": "key", b"N": "number"}.get(data[:1])
    index = ImageIndex([_file("table.parquet", data[1:])], columns=tables.Columns(key=key))
    for i in range(min(len(index), 8)):
        index.name(i), index.short_name(i)
        for read in (index.read, partial(index.text, column="text")):
            with _refusals():
                read(i)


def _parquets() -> Iterator[bytes]:
    import pyarrow
    from pyarrow import parquet

    png = next(_pictures())
    picture = [{"bytes": png, "path": None}, {"bytes": None, "path": "a.png"}, {"bytes": png, "path": "b"}]
    beside = {"key": ["a", "b", "ü"], "number": [3, 1, 2], "text": ["a dog", None, ""]}
    for letter, pictures in ((b"K", picture), (b"N", [png, None, b"no"]), (b"-", picture)):
        out = io.BytesIO()
        options: dict[str, Any] = {"compression": "none"} if letter == b"K" else {"use_dictionary": False}
        parquet.write_table(pyarrow.table({"image": pictures, **beside}), out, row_group_size=2, **options)
        yield letter + out.getvalue()


def _shards() -> Iterator[bytes]:
    png = next(_pictures())
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form) as tar:
            for name in (
                "a/1.png",
                "b.png",
                f"{'long' * 40}/ü.png"[: 90 if form == tarfile.USTAR_FORMAT else 200],
            ):
                info = tarfile.TarInfo(name)
                info.size = len(png)
                tar.addfile(info, io.BytesIO(png))
            link = tarfile.TarInfo("c.png")
            link.type, link.linkname = tarfile.SYMTYPE, "b.png"
            tar.addfile(link)
        yield out.getvalue()


# --- Sets of `dove tokenize` --------------------------------------------------------------------------------

_MEMBERS = {b"P": PLAN, b"M": MANIFEST, b"K": KEYS, b"S": "shards/000000/000000000.safetensors"}
_MEMBERS |= {letter.lower(): name for letter, name in _MEMBERS.items()}
_MEMBERS[b"T"] = _MEMBERS[b"t"] = "shards/000000/000000000.tar"
_CHECKED = re.compile(rb'"checksum":"([0-9a-f]{32})"')


@cache
def _sets() -> dict[str, Path]:
    """A set of each format, with tiles and without; by format."""
    room = _room()
    (room / "pictures").mkdir()
    for number, pixels in enumerate(photos(3)):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(room / "pictures" / f"{number}.png")
    stack = StackConfig(hidden=32, layers=1, heads=1, mlp=32)
    micro(generator=stack, token_decoder=stack).save_pretrained(room / "small")
    for form in ("safetensors", "webdataset"):
        settings = Settings(str(room / "small"), num_tokens=2, shard_size=2, format=form)
        tokenize([room / "pictures"], room / form, settings, workers=1)
    return {form: room / form for form in ("safetensors", "webdataset")}


def _with_checksum(data: bytes) -> bytes:
    """A shard that says the checksum that it has: a stranger can compute it, too."""
    if (place := _CHECKED.search(data, 0, 4096)) is None:
        return data
    start, stop = place.span(1)
    digest = blake2b(data[:start] + b"0" * 32 + data[stop:], digest_size=16).hexdigest()
    return data[:start] + digest.encode() + data[stop:]


def _set(data: bytes) -> None:
    """The first byte says which file; those of capital letters have the checksums that they should."""
    name, content, whole = _MEMBERS.get(data[:1]), data[1:], data[:1].isupper()
    if name is None:
        return
    folder = _sets()["webdataset" if name.endswith(".tar") else "safetensors"]
    if whole and name.startswith("shards"):
        if not name.endswith(".tar"):
            content = _with_length(content)
        content = _with_checksum(content)
    before = {part: _read(folder / part) for part in (name, MANIFEST)}
    try:
        (folder / name).write_bytes(content)
        if whole and name == KEYS:
            manifest = json.loads(before[MANIFEST])
            manifest["keys"]["checksum"] = file_checksum(folder / KEYS)
            (folder / MANIFEST).write_text(json.dumps(manifest))
        _read_set(folder)
    finally:
        for part, good in before.items():
            (folder / part).write_bytes(good)


@cache
def _read(path: Path) -> bytes:
    return path.read_bytes()


def _read_set(folder: Path) -> None:
    """All that can be asked of a set; what `verify` finds is raised at the end, one of it."""
    wrong: list[str] = []
    try:
        begin(folder, json.loads(_read(folder / PLAN)))
        wrong = list(map(_sentence, verify(folder)))
    except DoveError as error:
        wrong.append(_sentence(str(error)))
    if wrong and folder == _sets()["webdataset"]:
        raise DataError(wrong[0])
    data = TokenDataset(folder)
    for number in range(min(len(data), 4)):
        with _refusals():
            assert len(data[number]) >= 1
            assert data.key(number) in data or wrong
    assert "no such" not in data
    stream = TokenStream(folder, block=2, mix=2)
    with _refusals():
        for _ in zip(range(8), stream, strict=False):
            pass
    if wrong:
        raise DataError(wrong[0])


def _set_files() -> Iterator[bytes]:
    sets = _sets()
    for letter, name in _MEMBERS.items():
        content = _read(sets["webdataset" if name.endswith(".tar") else "safetensors"] / name)
        yield letter + (_without_length(content) if letter == b"S" else content)


# --- Text ---------------------------------------------------------------------------------------------------


@cache
def _asked() -> DoveModel:
    return DoveModel.from_pretrained(_folder())


def _query(data: bytes) -> None:
    """Any string, surrogates included."""
    _asked().queries(data.decode("utf-8", "surrogateescape"), 1)


def _queries() -> Iterator[bytes]:
    yield from (b"red dog", b"null", "\N{DOG}".encode(), b" ", b"a" * 300, b"\xff\x00")


def _recipe(data: bytes) -> None:
    """Its first line says for which program."""
    make = make_instruct_settings if data.startswith(b"encoder:") else make_settings
    make(read_recipe(_file("recipe.yaml", data)), "recipe.yaml")


def _recipes() -> Iterator[bytes]:
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        yield b"".join(line for line in path.read_bytes().splitlines(True) if not line.startswith(b"#"))
    yield b"learning_rate: 5e-4\nstages: {a: {steps: 1, train: [head]}}\n"


def _conversations(data: bytes) -> None:
    """The first byte says which of the two layouts."""
    read_conversations([_file("rows.jsonl" if data[:1] == b"L" else "rows.json", data[1:])])


def _conversation_files() -> Iterator[bytes]:
    talk = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a dog"}]
    rows = [
        {"id": "1", "image": "a.jpg", "conversations": talk},
        {"id": 2, "conversations": [{"from": "human", "value": "so?"}, talk[1]]},
    ]
    yield b"J" + json.dumps(rows).encode()
    yield b"L" + b"\n".join(json.dumps(row).encode() for row in rows)
    yield b"L" + json.dumps({"image": ["a", "b"], "question": "<image> or <image>?", "answer": "a"}).encode()


_HEADER = (
    '"shape":[',
    '"dtype":"F32"',
    '"dtype":"U32"',
    '"dtype":"I64"',
    '"dtype":"F8_E4M3"',
    '"data_offsets":[0,4]',
    "__metadata__",
    "cu_seqlens",
    "p_eos",
    "BF16",
)
TARGETS = {
    "tokens": Target(_tokens, _token_files, (*_HEADER, "num_slots", "names", "tiles", "psnr", "relevance")),
    "model": Target(
        _model, _model_files, (*_HEADER, "model_type", "null", "true", "1e999", "-1", "999999999")
    ),
    "picture": Target(_picture, _pictures),
    "shard": Target(_shard, _shards, ("ustar\x00", "GNU.sparse.size", "path=", ".png")),
    "parquet": Target(_parquet, _parquets, ("PAR1", "bytes", "list", "element", "ARROW:schema")),
    "set": Target(
        _set,
        _set_files,
        (*_HEADER, '"pictures":', '"shards":', '"checksum":', "\x93NUMPY", "'descr': '|O'", "NaN", "1e999"),
    ),
    "query": Target(_query, _queries),
    "recipe": Target(_recipe, _recipes, ("stages:", "{}", "[]", "&a", "*a", "<<:", "!!", "2001-99-99", "0x")),
    "conversations": Target(
        _conversations, _conversation_files, ('"from"', '"value"', "<image>", "null", "{}")
    ),
}
