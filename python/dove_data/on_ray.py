"""The units on a Ray cluster: Ray Data hands them to actors, as many as there is room and work for.

Ray restarts actors that were killed and gives their units to others; a unit that was written already is found
by whoever gets it. All nodes must see the folder under the same path.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np

from dove_data.settings import DataError
from dove_data.shards import Row
from dove_data.units import Job, Maker, Unit
from dove_ext.errors import DoveError


class Actor:
    """A worker: one model, for any number of units."""

    def __init__(self, job: Job) -> None:
        from dove_ext.memory import keep_freed_memory

        keep_freed_memory()
        # Ray shows an actor its own GPU only.
        device = "cuda:0" if job.settings.device.startswith("cuda") else job.settings.device
        self._maker = Maker(job, device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Pickled units become pickled rows; what a user has to mend is handed on, not tried again."""
        results = np.empty(len(batch["unit"]), object)
        for i, data in enumerate(batch["unit"]):
            try:
                result: Any = self._maker(*pickle.loads(data))
            except DoveError as error:
                result = str(error)
            results[i] = pickle.dumps(result)
        return {"row": results}


def run(job: Job, units: Iterator[Unit], count: int, workers: int | None) -> Iterator[Row]:
    """The rows of all units, in any order.

    Args:
        job: what to make.
        units: of the list.
        count: how many.
        workers: the most actors; None: one for each GPU, or core, of the cluster.

    Raises:
        DataError: if Ray is missing or gives up, or what an actor found wrong.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise DataError(f"--engine ray needs: pip install 'dove-ext[ray]' ({error})") from error
    ours = not ray.is_initialized()
    if ours:
        try:  # a cluster that RAY_ADDRESS names, or one of this machine
            ray.init(log_to_driver=False, logging_level="error")
        except Exception as error:  # Ray raises plain ones
            raise DataError(f"Ray cannot be started or joined: {str(error).strip()}") from error
    try:
        yield from _rows(ray, job, units, count, workers)
    finally:
        if ours:
            ray.shutdown()


def _rows(ray: Any, job: Job, units: Iterator[Unit], count: int, workers: int | None) -> Iterator[Row]:
    on_gpu = job.settings.device.startswith("cuda")
    resource = "GPU" if on_gpu else "CPU"
    there = int(ray.cluster_resources().get(resource, 0))
    if not there:
        raise DataError(f"the Ray cluster has no {resource}; join one that has, or choose another --device")
    workers = workers or there
    share = min(1.0, there / workers) if on_gpu else 1
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    rows = ray.data.from_items(
        [{"unit": pickle.dumps(unit)} for unit in units], override_num_blocks=min(count, 10_000)
    ).map_batches(
        Actor,
        batch_size=1,
        fn_constructor_args=(job,),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(workers, count)),
        **({"num_gpus": share} if on_gpu else {"num_cpus": share}),
    )
    try:
        for item in rows.iter_rows():
            row = pickle.loads(item["row"])
            if isinstance(row, str):
                raise DataError(row)
            yield row
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise DataError(f"Ray has given up ({reason}); the same command goes on from here") from error
