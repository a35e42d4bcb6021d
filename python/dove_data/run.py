"""A run from pictures to a set of tokens, or the rest of one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from dove_data import local, on_ray
from dove_data.manifest import write_manifest
from dove_data.plan import SHARDS, alone, begin, look_through, make_plan, plan_id
from dove_data.settings import ENGINES, MOST_UNREADABLE, DataError, Settings
from dove_data.shards import Row
from dove_data.units import Job, units_of
from dove_ext.atomic import remove_unfinished
from dove_ext.config import DoveConfig
from dove_ext.images.index import ImageIndex
from dove_ext.images.tables import Columns, is_table
from dove_ext.models.pretrained import find_model, load_config, shipped_folder
from dove_ext.tokens.lengths import LengthRule


class Result(NamedTuple):
    """What a run came to.

    Attributes:
        manifest: as it was written.
        made: shards that this run has made; the others were there.
    """

    manifest: dict[str, Any]
    made: int


def tokenize(
    sources: Sequence[str | Path],
    folder: str | Path,
    settings: Settings | None = None,
    *,
    engine: str = "local",
    workers: int | None = None,
    max_unreadable: float = MOST_UNREADABLE,
    on_start: Callable[[int], Callable[[Row], None]] | None = None,
) -> Result:
    """Turn pictures into a set of tokens, or go on where an earlier call was interrupted.

    Args:
        sources: image folders, tar shards and parquet files.
        folder: a new or empty one, or one with the rest of the same run.
        settings: what the tokens depend on; None: the default model's own lengths.
        engine: "local", or "ray" for Ray Data on a cluster (`RAY_ADDRESS`, or one of this machine).
        workers: processes; None: one for each GPU or core. The result does not depend on it.
        max_unreadable: pictures that may be unreadable: a share below 1, or a number.
        on_start: is told how many pictures there are, and gives what is called for each shard.

    Raises:
        DoveError: if a source cannot be read, the folder holds another run or cannot be written, the model
            is not there or the settings do not fit it, or too many pictures are unreadable.
    """
    settings, folder = settings or Settings(), Path(folder)
    if engine not in ENGINES:
        raise DataError(f"engine must be one of {', '.join(map(repr, ENGINES))}, got {engine!r}")
    if workers is not None and workers < 1:
        raise DataError(f"workers must be at least 1, got {workers}")
    if engine == "local":
        workers = workers or local.default_workers(local.devices_of(settings.device))
    _check_lengths(settings)
    _check_apart(sources, folder)
    if engine == "ray":  # whose workers may stand in other folders
        sources = [Path(source).absolute() for source in sources]
    index = ImageIndex(sources, columns=Columns(settings.image_column, settings.key_column))
    _check_columns(settings, index)
    listed = look_through(index)
    plan = make_plan(settings, index, listed)
    with alone(folder):
        begin(folder, plan)
        _sweep(folder)
        job, count = Job(folder.absolute(), _found(settings), plan_id(plan)), plan["shards"]
        limit = math.ceil(max_unreadable * len(index)) if 0 < max_unreadable < 1 else int(max_unreadable)
        units = units_of(index, settings.shard_size)
        results: Iterator[Row]
        if engine == "ray":
            results = on_ray.run(job, units, count, workers)
        else:
            results = local.run(job, units, min(workers or 1, count))
        told = on_start(len(index)) if on_start is not None else None
        try:
            rows = _collected(results, index, settings.shard_size, limit, told)
        finally:
            results.close()  # type: ignore[attr-defined] # ends the workers
            _sweep(folder)
        if len(rows) != count:
            raise DataError(f"{count - len(rows)} of {count} shards were not made; the same command goes on")
        manifest = write_manifest(folder, plan, [rows[unit] for unit in range(count)], index, listed.hashes)
    return Result(manifest, sum(row.made for row in rows.values()))


def _collected(
    results: Iterator[Row], index: ImageIndex, size: int, limit: int, told: Callable[[Row], None] | None
) -> dict[int, Row]:
    rows: dict[int, Row] = {}
    unreadable = 0
    for row in results:
        rows[row.unit] = row
        unreadable += len(row.unreadable)
        if unreadable > limit:
            place, why = row.unreadable[-1]
            seen = sum(row.pictures + len(row.unreadable) for row in rows.values())
            raise DataError(
                f"{unreadable} of {seen} pictures so far cannot be read, and {limit} of {len(index)} may be; "
                f"mend them and begin anew, or allow more (--max-unreadable); one is number "
                f"{row.unit * size + place}: {why}"
            )
        if told is not None:
            told(row)
    return rows


def _found(settings: Settings) -> Settings:
    """The settings with a model's folder by its whole path."""
    model = settings.model
    if shipped_folder(model) is None and Path(model).is_dir():
        model = str(Path(model).absolute())
    return replace(settings, model=model)


def _check_lengths(settings: Settings) -> None:
    config = load_config(find_model(settings.model), DoveConfig)
    try:
        rule = LengthRule(**settings.lengths)
        if settings.tiles is not None:  # these are then of a picture, whose tiles nobody has counted
            rule = replace(rule, num_tokens=None, max_tokens=None)
        rule.check(config.num_tokens, 1)
    except ValueError as error:
        raise DataError(str(error)) from error


def _check_apart(sources: Sequence[str | Path], folder: Path) -> None:
    """Refuse a folder that a later run would find its own shards in."""
    target = folder.resolve()
    for source in map(Path, sources):
        place = source.resolve()
        if place == target or place in target.parents:
            raise DataError(
                f"{str(folder)!r} lies in {str(source)!r}; choose a folder outside of the pictures"
            )


def _check_columns(settings: Settings, index: ImageIndex) -> None:
    for column in (settings.query_column, settings.key_column):
        if column is None:
            continue
        for place in index.places():
            if not is_table(place):
                raise DataError(f"{place!r} is no parquet file, so it has no column {column!r}; leave it out")
    if settings.query_column is not None:
        index.text(0, settings.query_column)  # whether there is one


def _sweep(folder: Path) -> None:
    """Remove what killed processes had begun to write."""
    for place in (folder, *folder.glob(f"{SHARDS}/*")):
        remove_unfinished(place)
