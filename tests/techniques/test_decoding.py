"""Records of the decoding family: who drafts, what a draft weighs, how many tokens it yields."""

from __future__ import annotations

from dataclasses import replace

import pytest
from technique_cases import latent_layer, llama_8b, one_layer, serving, training

from worthit.errors import NotApplicable
from worthit.techniques.decoding import (
    eagle,
    lookahead,
    medusa,
    prompt_lookup,
    self_speculative,
    speculative_decoding,
)

ALL = (eagle, lookahead, medusa, prompt_lookup, self_speculative, speculative_decoding)
IDS = [m.TECHNIQUE.id for m in ALL]


def tokens_a_step(acceptance: float, draft_len: int) -> float:
    """One token, and one more for each draft kept in a row: summed, not the closed form."""
    return sum(acceptance**i for i in range(draft_len + 1))


@pytest.mark.parametrize("module", ALL, ids=IDS)
def test_each_drafter_is_told_from_the_others(module):
    after = module.apply(serving(copy_rate=0.5))
    assert [m.TECHNIQUE.id for m in ALL if m.is_present(after)] == [module.TECHNIQUE.id]
    assert module.TECHNIQUE.remove(after) == serving(copy_rate=0.5)


@pytest.mark.parametrize("module", ALL, ids=IDS)
def test_nothing_drafts_before(module):
    assert not module.is_present(serving())


@pytest.mark.parametrize("module", ALL, ids=IDS)
def test_a_drafter_replaces_another(module):
    case = speculative_decoding.apply(serving(), draft_len=9)
    assert module.apply(case) == module.apply(serving())


@pytest.mark.parametrize("module", ALL, ids=IDS)
def test_training_does_not_decode(module):
    with pytest.raises(NotApplicable, match="acts when a model is served; this case trains one"):
        module.apply(training())


@pytest.mark.parametrize("module", ALL, ids=IDS)
def test_distribution_is_held_and_acceptance_is_an_honest_interval(module):
    drafted = module.apply(serving(copy_rate=0.5)).runtime.speculation
    a = drafted.acceptance
    assert a.high - a.low >= 0.15, "acceptance is never known this well"
    assert tokens_a_step(a.high, drafted.draft_len) < 4.0


def test_medusa_heads_of_llama_8b():
    # Each: 4096 x 4096 residual block and 4096 x 128256 output head = 542,113,792.
    drafted = medusa.apply(serving()).runtime.speculation
    assert drafted.head_params == 4 * 542_113_792
    assert drafted.draft_len * drafted.branches == 64


def test_medusa_yields_the_tokens_that_its_comment_states():
    a = medusa.ACCEPTANCE
    yields = [tokens_a_step(x, 4) for x in (a.low, a.mid, a.high)]
    assert yields == pytest.approx([2.1, 2.5, 3.4], abs=0.05)


def test_eagle_drafter_of_llama_8b():
    # Attention over 8192 channels: q 33,554,432, k and v 8,388,608 each, o 16,777,216;
    # feed-forward 3 x 58,720,256; two norms; fusion 3 x 16,777,216; head of 32,000 rows.
    attention = 33_554_432 + 2 * 8_388_608 + 16_777_216
    head = 32_000 * 4096
    expected = attention + 176_160_768 + 2 * 4096 + 50_331_648 + head
    assert eagle.head_params(serving()) == expected
    assert expected == pytest.approx(0.43e9, rel=0.02)


def test_eagle_counts_latent_attention_too():
    model = replace(llama_8b(), layers=(latent_layer(),) * 4)
    assert eagle.head_params(serving(model)) > 3 * 4096**2


def test_eagle_draft_head_is_no_larger_than_the_vocabulary():
    case = serving(one_layer())
    assert eagle.head_params(case) == eagle.head_params(case, draft_vocab=64)


def test_lookahead_computes_a_window_and_a_pool_beside_its_token():
    drafted = lookahead.apply(serving()).runtime.speculation
    assert drafted.draft_len * drafted.branches == (15 + 15) * (5 - 1) == 120
    narrow = lookahead.apply(serving(), ngram=3, window=4, guesses=2).runtime.speculation
    assert narrow.draft_len * narrow.branches == 12


def test_self_speculation_adds_no_memory_and_refuses_shallow_models():
    drafted = self_speculative.apply(serving()).runtime.speculation
    assert drafted.draft_scale == drafted.head_params == 0
    with pytest.raises(NotApplicable, match="first layers of a deep model, got 1; it needs 4"):
        self_speculative.apply(serving(one_layer()))


@pytest.mark.parametrize("copy_rate", [0.2, 0.4, 0.6, 0.8])
def test_looked_up_runs_yield_what_a_constant_acceptance_yields(copy_rate):
    # Steps per token: one for each token outside runs, one for six inside (five drafts and one).
    tokens = 1 / (1 - copy_rate + copy_rate / 6)
    equivalent = max(a / 1000 for a in range(1000) if tokens_a_step(a / 1000, 5) <= tokens)
    assert prompt_lookup.acceptance(copy_rate).mid == pytest.approx(equivalent, abs=0.05)


def test_looking_up_what_is_never_copied_keeps_nothing():
    assert prompt_lookup.acceptance(0.0).high == 0
    drafted = prompt_lookup.apply(serving()).runtime.speculation
    assert tokens_a_step(drafted.acceptance.mid, drafted.draft_len) == 1


def test_even_pure_copying_ends_somewhere():
    assert prompt_lookup.acceptance(1.0).high < 1


def test_default_draft_is_worth_it_by_the_formula_and_a_long_one_is_not():
    # S = tokens / (g c + 1): 2.77 / 1.2 = 2.31 at g = 4; 3.33 / 3 = 1.11 at g = 40.
    drafted = speculative_decoding.apply(serving()).runtime.speculation
    g, c, a = drafted.draft_len, drafted.draft_scale, drafted.acceptance.mid
    assert tokens_a_step(a, g) / (g * c + 1) == pytest.approx(2.31, abs=0.01)
    assert tokens_a_step(a, 40) / (40 * c + 1) == pytest.approx(1.11, abs=0.01)
