"""The one case table: every op with its odd shapes, for every implementation of it.

A row names an op of `dove_ext.ops`, says what it stresses, and makes its inputs for a dtype. The same row
drives the compiled kernels of every instruction set, their gradients, `opcheck`, and any further backend,
each against `dove_ext.ops.reference` in float64. To add an op: a file beside this one with a list `CASES`,
and its name in `_TABLES`. A bug arrives with the row that would have caught it.
"""

from tests.cases import attention, block, conv, eos, group_norm, pack, residual_sum
from tests.cases.case import Case, cast

_TABLES = (attention, block, conv, eos, group_norm, pack, residual_sum)

CASES: list[Case] = [case for table in _TABLES for case in table.CASES]

__all__ = ["CASES", "Case", "cast"]
