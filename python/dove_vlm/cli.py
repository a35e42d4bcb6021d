"""`dove vlm eval`: a model's scores on a benchmark at several numbers of tokens, and a table of all."""

from __future__ import annotations

import json
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from dove_ext.atomic import atomic_write, make_writable_folder
from dove_ext.cli.command import EXIT_OK, Command, UsageError
from dove_ext.cli.options import find_device, positive
from dove_vlm.benchmarks.evaluate import OWN, Result, evaluate, table
from dove_vlm.benchmarks.generate import NULL, QUESTION
from dove_vlm.benchmarks.records import BenchmarkError, Record
from dove_vlm.benchmarks.registry import BENCHMARKS, find_benchmark, read_records
from dove_vlm.benchmarks.submission import entries, write_submission

SUMMARY = "score a trained model on a benchmark of visual question answering (Table 3)"
EXAMPLE = "dove vlm eval --benchmark gqa --data data/gqa --model runs/vlm/model --num-tokens 64 -o scores/"
TABLE, SUBMISSIONS = "table.md", "submissions"


def configure(parser: ArgumentParser) -> None:
    """Add the verb's arguments, and `run` as what it runs."""
    parser.add_argument("--benchmark", required=True, choices=list(BENCHMARKS), help="which")
    parser.add_argument("--data", required=True, metavar="DIR", help="the folder with its official files")
    parser.add_argument(
        "--model",
        required=True,
        metavar="FOLDER",
        help="a model with its processor, by `dove vlm train`",
    )
    parser.add_argument(
        "-o", "--output", required=True, type=Path, metavar="DIR",
        help=f"folder for results, submissions and {TABLE} of all results in it",
    )  # fmt: skip
    parser.add_argument("--split", metavar="NAME", help="(default: the benchmark's, docs/vlm_benchmarks.md)")
    parser.add_argument(
        "--num-tokens", nargs="+", type=_length, default=[OWN], metavar="N",
        help=f"tokens an image: numbers, and {OWN} for the lengths that the model chooses (default: {OWN})",
    )  # fmt: skip
    parser.add_argument(
        "--query", choices=(QUESTION, NULL), help="what a Q-DOVE encoder is asked (default: nothing)"
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="ask N questions only, evenly spread")
    parser.add_argument("--batch-size", type=positive, default=16, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="such as cuda or cuda:1 (default: cpu)")
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"),
        help="the language model's (default: as it was saved)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.set_defaults(run=run)  # of this parser, whatever its parent runs


def run(args: Namespace) -> int:
    """Read the questions, ask, write, report."""
    from dove_ext.memory import keep_freed_memory, let_idle_threads_sleep

    let_idle_threads_sleep()
    benchmark = find_benchmark(args.benchmark)
    try:
        split = benchmark.split(args.split)
    except BenchmarkError as error:
        raise UsageError(f"--split: {error}") from error
    withheld = split in benchmark.withheld
    if withheld and args.limit is not None:
        raise UsageError(f"a submission answers all questions of {split}; leave --limit out")
    find_device(args.device)
    records = read_records(benchmark.name, args.data, split)
    folder = make_writable_folder(args.output)
    if withheld:
        make_writable_folder(folder / SUBMISSIONS)
        entries(benchmark.name, split, [], args.data)  # what it lacks shows before the work, not after
    keep_freed_memory()
    results = []
    for result in _ask(args, split, _spread(records, args.limit)):
        stem = _stem(result)
        result.save(folder / f"{stem}.json")
        if withheld:
            rows = entries(benchmark.name, split, result.answers, args.data)
            write_submission(folder / SUBMISSIONS / f"{stem}.json", rows)
        results.append(result)
        if not args.json:
            print(_sentence(result), flush=True)
    if args.json:
        shown = [{k: v for k, v in asdict(result).items() if k != "answers"} for result in results]
        print(json.dumps(shown, indent=2))
    _write_table(folder)
    return EXIT_OK


def _ask(args: Namespace, split: str, records: list[Record]) -> Iterator[Result]:
    from dove_vlm.benchmarks.generate import Model, answerer, check_queries, load

    benchmark = find_benchmark(args.benchmark)
    processor, loaded = load(args.model, args.device, args.dtype)
    lengths = list(dict.fromkeys(args.num_tokens))
    # All at once: a length that is impossible shows before the work.
    models = [Model(processor, loaded, None if n == OWN else int(n)) for n in lengths]
    for record in records:  # before the work
        models[0].check(benchmark.prompt(record))
    if args.query == QUESTION:
        check_queries(models[0], records)
    for length, model in zip(lengths, models, strict=True):
        result = evaluate(
            benchmark.name,
            records,
            answerer(model, benchmark, args.query),
            split=split,
            batch_size=args.batch_size,
            num_tokens=length,
            model=str(args.model),
            query=args.query or "",
            sample=args.limit is not None,
        )
        yield replace(result, mean_tokens=model.mean_tokens)


def _sentence(result: Result) -> str:
    tokens = "" if result.mean_tokens is None else f", {result.mean_tokens:.1f} tokens an image"
    asked = f"{result.benchmark} {result.split}, {result.questions} questions{tokens}"
    if result.score is None:
        return f"{asked}: answers are withheld, the file for the server is in {SUBMISSIONS}/"
    parts = ", ".join(f"{name} {score:.1f} of {count}" for name, (score, count) in result.groups.items())
    return f"{asked}: {result.metric} {result.score:.1f}%" + (f" ({parts})" if parts else "")


def _stem(result: Result) -> str:
    parts = [result.benchmark, result.split, result.model, result.num_tokens, result.query]
    name = "-".join(part for part in parts if part) + ("-sample" if result.sample else "")
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)


def _write_table(folder: Path) -> None:
    """`TABLE` of the results in a folder, whichever call wrote them; other JSON there is passed over."""
    results = []
    for path in sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime):
        with suppress(BenchmarkError):
            results.append(Result.load(path))
    with atomic_write(folder / TABLE) as temporary:
        temporary.write_text(table(results), encoding="utf-8")


def _spread(records: list[Record], limit: int | None) -> list[Record]:
    if limit is None or limit >= len(records):
        return records
    return [records[i * len(records) // limit] for i in range(limit)]


def _length(text: str) -> str:
    if text == OWN:
        return text
    try:
        return str(positive(text))
    except ArgumentTypeError as error:
        raise ArgumentTypeError(f"{error}, nor {OWN!r}") from None


command = Command(SUMMARY, configure, run, example=EXAMPLE)
