"""Every record of the catalogue, walked: what it promises, on cases of every kind."""

from __future__ import annotations

import copy
import inspect
import re
from pathlib import Path
from typing import get_args

import pytest
from reference_cases import CASES

import worthit.techniques
from worthit.errors import NotApplicable
from worthit.spec.case import ADOPTIONS
from worthit.techniques import FAMILIES, Bottleneck, Technique, catalogue, technique

# The cost-driven half of the catalogue; DESIGN's list, by family.
EXPECTED = {
    "attention": "mha mqa gqa mla linear-attention gated-linear-attention delta-rule "
    "low-rank-attention sliding-window sparse-attention flash-attention",
    "position": "sinusoidal learned-positions relative-bias alibi rope nope position-interpolation "
    "ntk-scaling yarn longrope",
    "norm": "layernorm rmsnorm pre-norm qk-norm relu gelu swiglu",
    "ssm": "s4 mamba mamba2 rwkv hybrid",
    "moe": "soft-gating switch topk-moe expert-choice shared-experts aux-free-balancing",
    "depth": "mixture-of-depths mixture-of-recursions recursive-transformer early-exit "
    "deep-equilibrium",
    "cache": "kv-quantization kv-eviction paged-attention prefix-caching continuous-batching "
    "chunked-prefill",
    "decoding": "speculative-decoding self-speculative prompt-lookup medusa eagle lookahead",
    "precision": "int8-weights int4-weights fp8-training mx-training bitnet",
    "optimizer": "muon shampoo soap",
    "parallel": "tensor-parallel pipeline-parallel expert-parallel context-parallel fsdp "
    "activation-checkpointing",
    "alignment": "dpo ipo kto simpo orpo spin rlaif constitutional-ai",
    "merging": "task-arithmetic linear slerp ties dare-ties dare-linear passthrough",
    "interpretability": "sae topk-sae jumprelu-sae gated-sae batchtopk-sae "
    "difference-in-means linear-probe ccs sae-steering activation-addition "
    "directional-ablation nullspace-projection conceptor activation-patching knowledge-editing "
    "uncertainty-features",
    "reasoning": "best-of-n self-consistency verifier-search budget-forcing",
}
RECORDS = list(catalogue().values())


def records(test):
    return pytest.mark.parametrize("t", RECORDS, ids=lambda t: t.id)(test)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_complete(family):
    found = {t.id for t in RECORDS if t.family == family}
    assert found == set(EXPECTED[family].split())


def test_no_family_beyond_those_named():
    assert {t.family for t in RECORDS} <= set(EXPECTED)


@records
def test_the_id_is_the_stem_of_the_file(t: Technique):
    path = Path(inspect.getfile(t.apply))
    assert path.stem.replace("_", "-") == t.id
    assert path.parent.name == t.family
    assert technique(t.id) is t


@records
def test_apply_changes_some_case_and_refuses_the_others_with_a_reason(t: Technique):
    n_changed = 0
    for name, case in CASES.items():
        before = copy.deepcopy(case)
        try:
            after = t.apply(case)
        except NotApplicable as refusal:
            sentence = str(refusal)
            assert t.id in sentence, f"{name}: the refusal does not name {t.id}: {sentence}"
            assert len(sentence) > 40, f"{name}: a reason is missing: {sentence}"
        else:
            assert t.is_present(after), f"{name}: applied and not present"
            n_changed += after != case
        assert case == before, f"{name}: the argument was changed"
    assert n_changed, "no reference case takes this technique"


@records
def test_apply_is_a_function_of_its_argument(t: Technique):
    for case in CASES.values():
        try:
            assert t.apply(case) == t.apply(case)
        except NotApplicable:
            continue


@records
def test_remove_takes_out_what_apply_put_in(t: Technique):
    if t.remove is None:
        pytest.skip("the case without it is not well defined")
    for name, case in CASES.items():
        if t.is_present(case):
            assert not t.is_present(t.remove(case)), f"{name}: removed and still present"
            continue
        try:
            after = t.apply(case)
        except NotApplicable:
            continue
        assert not t.is_present(t.remove(after)), f"{name}: removed and still present"


@records
def test_knobs_are_keywords_with_defaults(t: Technique):
    first, *knobs = inspect.signature(t.apply).parameters.values()
    assert first.name == "case"
    for knob in knobs:
        assert knob.kind is knob.KEYWORD_ONLY, knob.name
        assert knob.default is not knob.empty, knob.name


@records
def test_what_cost_cannot_know_is_written_down(t: Technique):
    assert t.name
    assert t.relieves
    assert set(t.relieves) <= set(get_args(Bottleneck))
    assert t.adoption in ADOPTIONS
    for text in (t.bottleneck, t.cost_of_adoption, t.nothing_when, *t.pitfalls):
        assert text.endswith("."), text
        assert text[0].isupper() or not text[0].isalpha(), text
    assert t.pitfalls
    for evidence in t.evidence:
        assert evidence.claim.endswith("."), evidence.claim


@records
def test_sources_can_be_found(t: Technique):
    assert t.sources
    for source in (*t.sources, *(e.source for e in t.evidence)):
        assert source.cite
        assert source.title
        assert re.search(r"\b(19|20)\d\d\b", f"{source.cite} {source.id}"), source
        if source.id.startswith("arXiv:"):
            assert re.fullmatch(r"arXiv:\d{4}\.\d{4,5}", source.id), source.id


@records
def test_orientation_speaks_two_languages(t: Technique):
    assert set(t.orientation) == {"en", "es"}
    for text in t.orientation.values():
        assert text.endswith(".")
        assert len(text) > 150
    assert t.orientation["en"] != t.orientation["es"]
    # A Spanish paragraph has letters that an English one lacks.
    assert set("áéíóúñü") & set(t.orientation["es"])


def test_no_two_records_share_an_orientation():
    for language in ("en", "es"):
        texts = [t.orientation[language] for t in RECORDS]
        assert len(set(texts)) == len(texts)


@records
def test_the_diagram_marks_what_changes(t: Technique):
    assert 3 <= len(t.diagram) <= 9
    marked = [step for step in t.diagram if step[0] in "+-~"]
    assert marked
    for step in marked:
        assert step[1:].strip()
        assert step[0] != "~" or "=>" in step, step


@records
def test_the_four_headings_stand_in_the_file(t: Technique):
    text = inspect.getmodule(t.apply).__doc__
    places = [text.index(h) for h in ("Changes:", "Relieves:", "Does nothing when:", "Costs:")]
    assert places == sorted(places)


def test_records_hold_no_module_that_starts_slowly():
    root = Path(worthit.techniques.__file__).parent
    for path in root.rglob("*.py"):
        assert not re.search(r"^(import|from) (torch|numpy)\b", path.read_text(), re.MULTILINE)
