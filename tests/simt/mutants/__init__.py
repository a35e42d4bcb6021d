"""Faults of which the case table must notice every one, by kernel."""

from tests.simt.mutants import attention, block, eos, group_norm, pack, residual_sum
from tests.simt.mutants.mutant import Mutant

_FILES = (attention, block, eos, group_norm, pack, residual_sum)

MUTANTS: list[Mutant] = [mutant for file in _FILES for mutant in file.MUTANTS]

# Calls that no row of a mutant reaches, by file.
NOT_NEEDED: dict[str, tuple[str, ...]] = {
    name: calls for file in _FILES for name, calls in file.NOT_NEEDED.items()
}
