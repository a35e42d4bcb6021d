"""The entry point for lmms-eval, against stand-ins for its classes where it is not installed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from dove_vlm.benchmarks import BenchmarkError, generate
from dove_vlm.benchmarks.lmms import manifest
from tests.vlm.benchmarks.stand_in import StandIn


class Lmms:
    """As lmms_eval.api.model.lmms 0.7.3 begins."""

    is_simple = True

    def __init__(self) -> None:
        self._rank, self._world_size, self.task_dict = 0, 1, {}


@dataclass(frozen=True)
class ModelManifest:
    """As lmms_eval.models.registry_v2.ModelManifest."""

    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class that the manifest names, and the stand-in that it loads."""
    for name, content in {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": Lmms},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "dove_vlm.benchmarks.lmms_model", raising=False)
    inner = StandIn({"cat": "yes\nand more", "dog": "no"})
    monkeypatch.setattr(generate, "load", lambda folder, device, dtype: (inner, inner))
    module_name, class_name = manifest().simple_class_path.rsplit(".", 1)
    found = getattr(importlib.import_module(module_name), class_name)
    yield found, inner
    sys.modules.pop(module_name, None)


def request(context: str, number: int, **settings: Any) -> Any:
    arguments = (context, settings, lambda doc: doc["images"], number, "gqa", "testdev")
    return SimpleNamespace(args=arguments)


def test_manifest(made: Any) -> None:
    assert manifest().model_id == "dove" and issubclass(made[0], Lmms) and made[0].is_simple


def test_answers_come_in_the_order_of_the_requests(made: Any) -> None:
    cls, inner = made
    model = cls(pretrained="m", num_tokens="8", query="null", device="cpu", batch_size="2")
    model.task_dict = {"gqa": {"testdev": {i: {"images": [f"picture {i}"]} for i in range(4)}}}
    asked = [
        request("A cat?", 0, max_new_tokens=16, until=["\n"]),
        request("A dog?", 1, max_new_tokens=32, temperature=0),
        request("Another cat?", 2, max_new_tokens=16, until=["\n"]),
        request("A third cat?", 3, max_new_tokens=16, until=["\n"]),
    ]
    assert model.generate_until(asked) == ["yes", "no", "yes", "yes"]
    assert [options["max_new_tokens"] for options in inner.generated] == [16, 16, 32]
    assert [images for images, _ in inner.calls] == [
        [["picture 0"], ["picture 2"]],
        [["picture 3"]],
        [["picture 1"]],
    ]
    assert all(options["num_tokens"] == 8 and options["query"] == "null" for _, options in inner.calls)


def test_what_it_cannot_do_is_said(made: Any) -> None:
    model = made[0](pretrained="m")
    model.task_dict = {"gqa": {"testdev": {0: {"images": []}}}}
    for settings in ({"temperature": 0.7}, {"do_sample": True}, {"num_beams": 4}):
        with pytest.raises(BenchmarkError, match="answers are greedy"):
            model.generate_until([request("?", 0, **settings)])
    for method in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(NotImplementedError, match="generate_until"):
            method([])
    with pytest.raises(BenchmarkError, match="batch_size 'auto'"):
        made[0](pretrained="m", batch_size="auto")
    with pytest.raises(TypeError, match="colour"):
        made[0](pretrained="m", colour="red")


@pytest.mark.skipif(importlib.util.find_spec("lmms_eval") is None, reason="lmms-eval is not installed")
def test_the_real_classes_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = StandIn({"cat": "yes"})
    monkeypatch.setattr(generate, "load", lambda folder, device, dtype: (inner, inner))
    registry = importlib.import_module("lmms_eval.models.registry_v2").ModelRegistryV2()
    registry.register_manifest(manifest())
    # As lmms_eval.evaluator makes a model.
    options = {"batch_size": 4, "max_batch_size": None, "device": "cpu"}
    model = registry.get_model_class("dove").create_from_arg_string("pretrained=m,num_tokens=8", options)
    model.task_dict = {"gqa": {"testdev": {0: {"images": ["picture"]}}}}
    asked = importlib.import_module("lmms_eval.api.instance").Instance(
        request_type="generate_until",
        arguments=request("A cat?", 0, max_new_tokens=16).args,
        idx=0,
        metadata={"task": "gqa", "doc_id": 0, "repeats": 1},
    )
    assert model.generate_until([asked]) == ["yes"]
    assert inner.calls == [([["picture"]], {"num_tokens": 8, "padding": True, "return_tensors": "pt"})]
