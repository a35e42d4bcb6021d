"""Faults of which the case table must notice every one, by kernel."""

from tests.simt.mutants import attention
from tests.simt.mutants.mutant import Mutant

MUTANTS: list[Mutant] = [*attention.MUTANTS]

# Calls that no row of a mutant reaches, by file.
NOT_NEEDED: dict[str, tuple[str, ...]] = {**attention.NOT_NEEDED}
