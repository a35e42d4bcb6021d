"""The paper's eight benchmarks of visual question answering (3.3, B.2): readers, metrics, tables.

records = read_records("gqa", "data/gqa")
result = evaluate("gqa", records, answer)   # answer: list[Record] -> list[str], of any model
print(result.score)
"""

from dove_vlm.benchmarks.evaluate import Result, evaluate
from dove_vlm.benchmarks.records import BenchmarkError, Record
from dove_vlm.benchmarks.registry import BENCHMARKS, Benchmark, find_benchmark, read_records

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "BenchmarkError",
    "Record",
    "Result",
    "evaluate",
    "find_benchmark",
    "read_records",
]
