"""The functions of the package itself are those of the default model."""

from __future__ import annotations

import inspect
import threading

import pytest
import torch

import dove_ext
from dove_ext import DoveModel, api
from tests.models.micro import micro, photos


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that were loaded; each is a small one."""
    names: list[str] = []
    model = micro()

    def load(name: str) -> DoveModel:
        names.append(name)
        return model

    monkeypatch.setattr(api, "_loaded", [])
    monkeypatch.setattr(DoveModel, "from_pretrained", load)
    return names


@pytest.mark.parametrize("name", ["encode", "decode", "reconstruct"])
def test_signatures_are_the_methods(name: str) -> None:
    function, method = getattr(dove_ext, name), getattr(DoveModel, name)
    ours, theirs = (inspect.signature(f).parameters for f in (function, method))
    assert list(ours.items()) == list(theirs.items())[1:]
    assert function.__name__ == name and function.__module__ == "dove_ext.api"
    assert inspect.getdoc(method).splitlines()[0] in inspect.getdoc(function)


def test_results_are_the_default_models(loads: list[str]) -> None:
    expected = micro().encode(photos(2), num_tokens=5, block_size=3)
    tokens = dove_ext.encode(photos(2), num_tokens=5, block_size=3)
    assert torch.equal(tokens.tokens, expected.tokens)
    pictures, again = dove_ext.reconstruct(photos(2), num_tokens=5)
    assert torch.equal(again.tokens, expected.tokens)
    assert torch.equal(dove_ext.decode(tokens), pictures)
    assert loads == ["dove-tiny"]


def test_threads_that_come_first_load_one_model(loads: list[str]) -> None:
    barrier, models = threading.Barrier(8), []

    def first() -> None:
        barrier.wait()
        models.append(api._default())

    threads = [threading.Thread(target=first) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == ["dove-tiny"] and len({id(model) for model in models}) == 1
