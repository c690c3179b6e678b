"""Records of interpretability: the need decides, and the guide knows the catalogue."""

from __future__ import annotations

from dataclasses import replace

import pytest
from technique_cases import llama_8b, serving, training

from worthit.cli.explain import NEEDS
from worthit.cli.main import run
from worthit.errors import NotApplicable
from worthit.judge.judge import judge_case
from worthit.spec.case import INSIDES, Data
from worthit.techniques import catalogue, technique
from worthit.techniques.interpretability._guide import GUIDE, needs_of

FAMILY = [t for t in catalogue().values() if t.family == "interpretability"]


def wanting(need: str, **data: int):
    return replace(serving(llama_8b()), data=Data(inside=need, **data))


def test_every_technique_answers_some_need_and_every_option_is_a_technique() -> None:
    assert tuple(GUIDE) == INSIDES == NEEDS
    for t in FAMILY:
        assert list(needs_of(t.id)), t.id
    for need in GUIDE.values():
        for option in need.options:
            if option.technique in catalogue():
                assert technique(option.technique).family == "interpretability"
            else:
                assert option.technique == "sae"
            assert set(option.when) == {"en", "es"}


def test_a_case_that_asks_for_nothing_is_told_what_to_ask() -> None:
    with pytest.raises(NotApplicable, match=r"say data.inside \(represent, control") as caught:
        technique("ccs").apply(serving(llama_8b()))
    assert "worthit explain NEED" in str(caught.value)


def test_another_need_is_sent_to_what_answers_it() -> None:
    with pytest.raises(NotApplicable, match="see activation-patching, sae"):
        technique("conceptor").apply(wanting("circuit"))
    with pytest.raises(NotApplicable, match=r"needs some 50 labelled texts or pairs, .* has 12"):
        technique("linear-probe").apply(wanting("detect", labels=12))
    technique("linear-probe").apply(wanting("detect"))  # not stated is no obstacle


def test_two_that_steer_at_once_are_to_be_measured_first() -> None:
    case = technique("activation-addition").apply(wanting("control"))
    with pytest.raises(NotApplicable, match="measure their interference first"):
        technique("conceptor").apply(case)


def test_the_judge_defers_what_fits_a_served_model_to_an_experiment() -> None:
    verdicts = {
        v.technique.id: v
        for v in judge_case(wanting("control"), only=["interpretability"]).verdicts
    }
    assert verdicts["activation-addition"].decision == "defer"
    assert "only an experiment can tell" in verdicts["activation-addition"].reason
    assert not verdicts["ccs"].is_applicable
    plain = judge_case(training(), only=["interpretability"]).verdicts
    assert not any(v.is_applicable for v in plain)


@pytest.mark.parametrize(("lang", "word"), [("en", "without training"), ("es", "sin entrenar")])
def test_explain_answers_a_need(lang: str, word: str, capsys) -> None:
    assert run(["explain", "control", "--lang", lang]) == 0
    out = capsys.readouterr().out
    assert word in out
    assert out.index("difference-in-means") < out.index("knowledge-editing")
