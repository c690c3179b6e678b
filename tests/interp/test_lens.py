"""The logit lens beside transformers' own modules."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from worthit.interp.lens import lens_logits, logit_lens
from worthit.nn.load import load_model


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("lens")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    hf = LlamaForCausalLM(config).eval()
    hf.save_pretrained(folder)
    return hf, load_model(folder).eval()


def test_every_layer_through_the_norm_and_the_head(llama) -> None:
    hf, model = llama
    ids = torch.randint(50, (2, 7), generator=torch.Generator().manual_seed(1))
    hidden = hf(ids, output_hidden_states=True).hidden_states
    ours = lens_logits(model, ids)
    assert list(ours) == ["embed", *(f"layers.{i}.resid_post" for i in range(3))]
    for i, point in enumerate(ours):
        # The last of transformers' states is normalised already.
        x = hidden[i] if i == 3 else hf.model.norm(hidden[i])
        assert_close(ours[point], hf.lm_head(x), atol=1e-4, rtol=1e-4)
    assert_close(ours["layers.2.resid_post"], model(ids))


def test_ranks_and_probabilities_by_hand(llama) -> None:
    _, model = llama
    ids = [3, 1, 4, 1, 5]
    said = logit_lens(model, ids, token=7, k=3)
    logits = lens_logits(model, torch.tensor([ids]))
    for layer in said:
        p = logits[layer.point][0, -1].softmax(-1)
        order = p.argsort(descending=True).tolist()
        assert [token for token, _ in layer.top] == order[:3]
        assert layer.rank == order.index(7)
        assert layer.probability == pytest.approx(float(p[7]), rel=1e-4)
