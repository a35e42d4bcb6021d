"""An engine without the plugin's model: the language model alone, handed rows of its own width."""

from __future__ import annotations

from pathlib import Path

from dove_vlm.serving.prompt_embeds import prompt_embeds
from tests.vllm.served import NONE, ONE, TWO, WORDS_OF_AN_ANSWER, Case, Reference, engine

CASES = [
    Case(ONE, (0,)),
    Case(TWO, (5, 8)),
    Case(NONE),
    Case(ONE, (8,), (("num_tokens", 100),)),
    Case(ONE, (12,), (("tiles", 4), ("num_tokens", 100))),
]


def test_prompt_embeds(llama_folder: Path, tmp_path: Path) -> None:
    from vllm import SamplingParams

    reference = Reference(llama_folder)
    reference.model.language_model.save_pretrained(tmp_path)
    reference.processor.tokenizer.save_pretrained(tmp_path)
    sampling = SamplingParams(temperature=0, max_tokens=WORDS_OF_AN_ANSWER, ignore_eos=True)
    options = {"enable_prompt_embeds": True, "limit_mm_per_prompt": None}
    with engine(tmp_path, **options) as llm:
        prompts = [
            {"prompt_embeds": prompt_embeds(reference.model, reference.made(case))[0]} for case in CASES
        ]
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
    assert [list(one.outputs[0].token_ids) for one in outputs] == [reference(case).words for case in CASES]
