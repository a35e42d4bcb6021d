"""Measure a model on your own images: from Python, or by `dove eval`, which is a shell over this.

    from dove_eval import EvalSettings, evaluate

    report = evaluate(EvalSettings(measurement="lengths", data=["photos/"], output="report/"))
    report.json()["results"]["lengths"]["length"]["value"]  # the mean length

Each measurement is one file that measures (numbers, by streaming over the images) and shows (a section of the
report). What they share: `settings` is what is asked for, `datasets` finds images, `subjects` finds all that
an evaluation looks at, `rows` keeps one row of numbers an image on disk, so that a run can go on where it
stopped, `systems` is what is compared, `bootstrap` says how sure a mean is, and `report` and `plots` draw.

Names are imported when they are first used, so that `dove --help` need not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dove_eval.report import Report
    from dove_eval.run import Evaluation, evaluate
    from dove_eval.settings import EvalSettings, EvaluationError

_HOMES = {
    "EvalSettings": "settings",
    "Evaluation": "run",
    "EvaluationError": "settings",
    "Report": "report",
    "evaluate": "run",
}

__all__ = ["EvalSettings", "Evaluation", "EvaluationError", "Report", "evaluate"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dove_eval' has no attribute {name!r}")
    from dove_ext.errors import DoveError

    try:
        return getattr(import_module(f"dove_eval.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("jinja2", "scipy"):
            raise
        raise DoveError(f"the package {missing!r} is not installed: pip install 'dove-ext[eval]'") from error
