"""`convert` of GPT-NeoX files that transformers writes, against its model with these weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dove_ext.checkpoints.convert import convert
from tests.checkpoints.public_checkpoints import CONFIG

pytestmark = pytest.mark.usefixtures("one_thread")


def neox() -> Any:
    transformers = pytest.importorskip("transformers", reason="the parity test needs transformers")
    stack = CONFIG.generator
    torch.manual_seed(5)
    shape = transformers.GPTNeoXConfig(
        vocab_size=CONFIG.vocab_size,
        hidden_size=stack.hidden,
        num_hidden_layers=stack.layers,
        num_attention_heads=stack.heads,
        intermediate_size=stack.mlp,
        hidden_act="gelu",
        rope_parameters={
            "rope_type": "default",
            "rope_theta": stack.rotary_base,
            "partial_rotary_factor": stack.rotary_fraction,
        },
        rotary_pct=stack.rotary_fraction,
        layer_norm_eps=stack.layer_norm_eps,
        attn_implementation="eager",
    )
    model = transformers.GPTNeoXForCausalLM(shape).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if name.endswith("norm.weight") else 0.0, 0.1)
    return model


@pytest.mark.parametrize("written", ["save_pretrained", "state_dict", "state_dict of transformers 4"])
@torch.no_grad()
def test_equals_transformers(written: str, base: Path, tmp_path: Path) -> None:
    theirs = neox()
    if written == "save_pretrained":
        theirs.save_pretrained(tmp_path)
        file = tmp_path / "model.safetensors"
    else:
        head = "embed_out.weight" if written.endswith("4") else "lm_head.weight"
        state = {n: t for n, t in theirs.state_dict().items() if n.startswith("gpt_neox.")}
        file = tmp_path / "pytorch_model.bin"
        torch.save({**state, head: theirs.get_output_embeddings().weight}, file)
    conversion = convert(pythia=file, base=base)
    generator = conversion.model.generator
    x = torch.randn(2, 40, CONFIG.generator.hidden)
    expected = theirs(inputs_embeds=x, use_cache=False, output_hidden_states=True)
    hidden = generator.stack(x, prefix=0)
    assert expected.logits.std() > 0.3  # the comparison is of something
    torch.testing.assert_close(hidden, expected.hidden_states[-1], rtol=0, atol=1e-5)
    torch.testing.assert_close(generator.embed_out(hidden), expected.logits, rtol=0, atol=1e-5)
    assert conversion.sources[0].dropped == ("gpt_neox.embed_in.weight",)


def test_state_dict_of_this_transformers(base: Path, tmp_path: Path) -> None:
    theirs = neox()
    torch.save(theirs.state_dict(), tmp_path / "state.pt")
    generator = convert(pythia=tmp_path / "state.pt", base=base).model.generator
    assert torch.equal(generator.embed_out.weight, theirs.get_output_embeddings().weight)
