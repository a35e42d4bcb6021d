"""A process forked after use says what would wait for ever; what would not, works.

Each case is a process of its own: a fork of the test's process would take its threads' state along. The
server that they are forks of has no threads.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.forks import Forks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")

START = """
import multiprocessing, sys, threading
import torch
from torch.utils.data import DataLoader
from dove_ext.images import prepare_images
from tests.models.micro import micro, photos

fork = multiprocessing.get_context("fork")

def in_child(function):
    def report(end):
        try:
            end.send(function())
        except RuntimeError as error:
            end.send(str(error))
    receiver, sender = fork.Pipe(False)
    process = fork.Process(target=report, args=(sender,))
    process.start()
    answer = receiver.recv() if receiver.poll(60) else "hangs"
    process.kill()
    return answer

def lengths():
    return model.encode(photos(2)).lengths.tolist()

def alone(function):
    torch.set_num_threads(1)
    return function()

def in_thread(function):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(function()))
    thread.start()
    thread.join()
    return answers[0]

def refused(answer):
    assert isinstance(answer, str) and "forked from one that had used 2 threads" in answer, answer
    assert "'spawn' or 'forkserver', or call torch.set_num_threads(1)" in answer and "\\n" not in answer
"""

AFTER_USE = """
torch.set_num_threads(2)
model = micro()
tokens = model.encode(photos(2))
expected = tokens.lengths.tolist()
refused(in_child(lengths))
refused(in_child(lambda: model.decode(tokens).shape))
refused(in_child(lambda: model.features(photos(1)).shape))
refused(in_child(lambda: prepare_images(photos(1), 32).shape))
refused(in_child(micro))
refused(in_child(lambda: in_child(lengths)))  # a child's child
assert in_child(lambda: alone(lengths)) == expected
assert in_child(lambda: in_thread(lengths)) == expected  # has no team that could be missing
assert lengths() == expected  # the parent goes on
"""

AFTER_LOADING = """
torch.set_num_threads(2)
model = micro()
refused(in_child(lengths))
"""

ONE_THREAD_BEFORE = """
torch.set_num_threads(1)
model = micro()
expected = lengths()
assert in_child(lengths) == expected
def two():
    torch.set_num_threads(2)
    return lengths()
assert in_child(two) == expected
"""

LOADER = """
torch.set_num_threads(2)
model = micro()
expected = model.encode(photos(4), num_tokens=5).tokens

class Photos(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        prepare_images(photos(4)[index], 32)
        return model.encode(photos(4)[index], num_tokens=5).tokens

loader = DataLoader(Photos(), num_workers=2, multiprocessing_context="fork", timeout=60)
torch.testing.assert_close(torch.cat([row[0] for row in loader]), expected, rtol=0, atol=1e-4)
"""


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    server = Forks("torch.utils.data", "dove_ext.images", "tests.models.micro")
    yield server
    server.close()


@pytest.mark.parametrize(
    "script",
    [AFTER_USE, AFTER_LOADING, ONE_THREAD_BEFORE, LOADER],
    ids=["after use", "after loading", "one thread before", "DataLoader"],
)
def test_fork(script: str, forks: Forks, tmp_path: Path) -> None:
    forks.start(START + script, tmp_path / "output")
    assert forks.wait() == 0, (tmp_path / "output").read_text()
