"""The methods of `worthit align` that learn from what a model says of answers, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from worthit.align.constitution import criticise
from worthit.align.data import Demonstrations, split_off
from worthit.align.job import Prepared, prompts_of
from worthit.align.learn import learn_demonstrations
from worthit.align.rlaif import CRITERION, Label, is_certain, label, reliability
from worthit.align.sample import sample
from worthit.align.sequences import Demonstration, Ids, Pair
from worthit.align.stages import Result, Said, from_pairs, of_learned
from worthit.align.text import answer_ids, decoded, prompt_ids, texts
from worthit.align.voice import Voice
from worthit.align.work import Work
from worthit.decode.tokenizer import load_tokenizer
from worthit.errors import WorthitError
from worthit.nn.load import checkpoint_path, load_model


def of_feedback(prepared: Prepared, work: Work, said: Said) -> Result:
    """RLAIF: two answers, a judge's label in both orders, then DPO."""
    job = prepared.job
    prompts = prompts_of(prepared)
    if prepared.encoded.pairs:
        two = [(p.chosen, p.rejected) for p in prepared.encoded.pairs]
    else:
        two = _two_answers(prepared, work, said, prompts)
    criteria = [job.criterion or CRITERION] * len(prompts)
    pairs, record, notes = _labelled(prepared, work, said, prompts, two, criteria)
    result = from_pairs(prepared, work, said, pairs, "rlaif")
    return Result(result.model, {**record, **result.record}, notes)


def of_constitution(prepared: Prepared, work: Work, said: Said) -> Result:
    """Constitutional AI: critique, revise, fine-tune; then preferences by the same principles."""
    job, model, tokenizer = prepared.job, prepared.model, prepared.tokenizer
    principles = prepared.constitution
    asked_texts = texts(e.prompt for e in prepared.examples)

    def write() -> list[dict[str, Any]]:
        found = criticise(
            Voice(model, tokenizer, temperature=job.temperature),
            asked_texts,
            principles,
            max_tokens=job.max_tokens,
            seed=job.seed,
            on_step=lambda what: said.line(f"writing {what} to {len(asked_texts)} prompts"),
        )
        return [{**r.to_json(), "is_changed": r.is_changed} for r in found]

    revised = work.kept("revisions", write)
    shown = [
        Demonstration(
            prompt=prompt_ids(e.prompt, tokenizer),
            completion=answer_ids(r["revisions"][-1], tokenizer, e),
        )
        for e, r in zip(prepared.examples, revised, strict=True)
        if r["is_changed"]
    ]
    if not shown:
        raise WorthitError(
            "no answer was changed by its revision: this model does not criticise itself; take a "
            f"larger one, or read {work.folder / 'revisions.json'} for what it wrote"
        )
    kept, held_out = split_off(shown, job.held_out, seed=job.seed)
    tuned = learn_demonstrations(
        model,
        Demonstrations("revisions", kept, held_out, vocab_size=model.spec.vocab_size),
        prepared.recipe,
        seed=job.seed,
        folder=work.folder / "revisions-run",
        progress=said.updates("revisions"),
    )
    prompts = prompts_of(prepared)
    two = _two_answers(prepared, work, said, prompts)
    drawn = torch.randint(
        len(principles), (len(prompts),), generator=torch.Generator().manual_seed(job.seed)
    )
    criteria = [principles[i].prefer for i in drawn.tolist()]
    pairs, record, notes = _labelled(prepared, work, said, prompts, two, criteria)
    result = from_pairs(prepared, work, said, pairs, "constitutional-ai")
    changed = len(shown) / len(revised)
    return Result(
        result.model,
        {
            "principles": len(principles),
            "revised": changed,
            "fine_tuning": of_learned(tuned),
            **record,
            **result.record,
        },
        [
            *notes,
            f"{100 * changed:.0f} % of answers were changed by their revision; read some: a small "
            "model criticises fluently and changes nothing that matters",
        ],
    )


def _two_answers(
    prepared: Prepared, work: Work, said: Said, prompts: Sequence[Ids]
) -> list[tuple[Ids, Ids]]:
    """Two answers of the model as it is now to each prompt."""
    job = prepared.job

    def answer() -> list[list[Ids]]:
        said.line(f"answering {len(prompts)} prompts twice")
        both = [
            sample(
                prepared.model,
                prompts,
                max_tokens=job.max_tokens,
                stop_ids=prepared.tokenizer.stop_ids,
                temperature=job.temperature,
                seed=2 * job.seed + i,
            )
            for i in (0, 1)
        ]
        return [list(two) for two in zip(*both, strict=True)]

    return [(tuple(a), tuple(b)) for a, b in work.kept("answers", answer)]


def _labelled(
    prepared: Prepared,
    work: Work,
    said: Said,
    prompts: Sequence[Ids],
    two: Sequence[tuple[Ids, Ids]],
    criteria: Sequence[str],
) -> tuple[list[Pair], dict[str, Any], list[str]]:
    """Pairs as a judge labels them, its reliability, and what to note of it."""
    job = prepared.job
    places = [i for i, (a, b) in enumerate(two) if a and b and a != b]
    if not places:
        raise WorthitError(
            "both answers to every prompt are the same: there is nothing to compare; raise "
            "--temperature"
        )

    def ask() -> list[dict[str, Any]]:
        judge = _judge(prepared)
        all_texts = texts(e.prompt for e in prepared.examples)
        found = label(
            judge,
            [all_texts[i] for i in places],
            decoded([two[i][0] for i in places], prepared.tokenizer),
            decoded([two[i][1] for i in places], prepared.tokenizer),
            criterion=[criteria[i] for i in places],
            on_labels=lambda done, of: said.work("labels", done, of),
        )
        return [x.to_json() for x in found]

    labels = [Label(**x) for x in work.kept("labels", ask)]
    found = reliability(labels, certainty=job.certainty)
    said.line(found.sentence())
    pairs = []
    for i, one in zip(places, labels, strict=True):
        if is_certain(one, job.certainty):
            better, worse = two[i] if one.a_is_better > 0.5 else two[i][::-1]
            pairs.append(Pair(prompt=prompts[i], chosen=better, rejected=worse))
    if not pairs:
        raise WorthitError(
            f"the judge is certain of none of {len(labels)} labels at --certainty {job.certainty}: "
            "lower it, or take a better judge"
        )
    return pairs, {"labels": {**asdict(found), "pairs": len(pairs)}}, [found.sentence()]


def _judge(prepared: Prepared) -> Voice:
    job = prepared.job
    if job.judge is None:
        return Voice(prepared.model, prepared.tokenizer)
    path = checkpoint_path(job.judge)
    return Voice(load_model(path), load_tokenizer(path))
