"""What each method of `worthit align` does, stage by stage, with what may be interrupted kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import nn

from worthit.align.data import Pairs, Ratings, WholePairs, split_off
from worthit.align.dpo import DPO
from worthit.align.grpo import GRPO
from worthit.align.ipo import IPO
from worthit.align.job import Prepared, rated_of
from worthit.align.kto import KTO
from worthit.align.learn import (
    Learned,
    learn_pairs,
    learn_ratings,
    learn_rewards,
)
from worthit.align.orpo import ORPO
from worthit.align.ppo import PPO, WithValue
from worthit.align.reference import frozen_copy
from worthit.align.reward import RewardModel, load_reward_model
from worthit.align.rollouts import ActorCriticLoss, GroupLoss, Reward, Rollouts, asked
from worthit.align.sequences import Demonstration, Ids, Pair
from worthit.align.simpo import SimPO
from worthit.align.spin import SPIN, Round, self_play
from worthit.align.text import decoded
from worthit.align.work import Work
from worthit.errors import InputError, unknown_name
from worthit.train import Progress, Update, train

RECORDS: dict[str, type] = {
    "dpo": DPO,
    "ipo": IPO,
    "simpo": SimPO,
    "orpo": ORPO,
    "kto": KTO,
    "spin": SPIN,
    "rlaif": DPO,
    "constitutional-ai": DPO,
    "grpo": GRPO,
    "ppo": PPO,
}


@dataclass(frozen=True)
class Said:
    """Where progress and lines go."""

    work: Callable[[str, int, int], None]
    line: Callable[[str], None]

    def updates(self, what: str) -> Progress:
        """Progress of a training."""

        def progress(update: Update) -> None:
            self.work(what, update.step, update.n_steps)

        return progress


@dataclass
class Result:
    """A model and what is recorded of how it came about."""

    model: Any
    record: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def method_of(prepared: Prepared) -> dict[str, Any]:
    """The settings of a job's method, checked; those that were not given at their defaults.

    Raises:
        InputError: a setting that the method does not have, or out of its range.
    """
    return {} if prepared.job.method == "reward" else asdict(_method(prepared))


def _method(prepared: Prepared) -> Any:
    job = prepared.job
    kind = RECORDS[job.method]
    known = [f.name for f in fields(kind)]
    for name in job.settings:
        if name not in known:
            raise unknown_name(f"setting of {job.method}", name, known)
    if job.method == "kto" and not {"good_weight", "bad_weight"} & set(job.settings):
        return KTO.balanced(rated_of(prepared), **job.settings)
    return kind(**job.settings)


# --- from data that are there --------------------------------------------------------------------


def of_pairs(prepared: Prepared, work: Work, said: Said) -> Result:
    """DPO, IPO, SimPO, ORPO."""
    return from_pairs(prepared, work, said, prepared.encoded.pairs, prepared.job.method)


def of_ratings(prepared: Prepared, work: Work, said: Said) -> Result:
    """KTO."""
    job = prepared.job
    kept, held_out = split_off(rated_of(prepared), job.held_out, seed=job.seed)
    if len({r.prompt for r in held_out}) < 2:
        held_out = []
    learned = learn_ratings(
        prepared.model,
        Ratings(job.data.name, kept, held_out, vocab_size=prepared.model.spec.vocab_size),
        _method(prepared),
        prepared.recipe,
        seed=job.seed,
        folder=work.folder / "run",
        progress=said.updates("kto"),
        on_scored=lambda n: said.line(f"reference: {n} answers scored"),
    )
    return Result(prepared.model, of_learned(learned))


def of_rewards(prepared: Prepared, work: Work, said: Said) -> Result:
    """A Bradley-Terry reward model."""
    job = prepared.job
    model = RewardModel(prepared.model)
    kept, held_out = split_off(prepared.encoded.pairs, job.held_out, seed=job.seed)
    learned = learn_rewards(
        model,
        WholePairs(job.data.name, kept, held_out, vocab_size=prepared.model.spec.vocab_size),
        prepared.recipe,
        seed=job.seed,
        folder=work.folder / "run",
        progress=said.updates("reward"),
    )
    return Result(model, of_learned(learned))


def of_self_play(prepared: Prepared, work: Work, said: Said) -> Result:
    """SPIN's rounds."""
    job, method = prepared.job, _method(prepared)
    kept, held_out = split_off(prepared.encoded.shown, job.held_out, seed=job.seed)

    def tell(t: int, played: Round) -> None:
        after = None if played.learned is None else played.learned.after
        what = "" if after is None else f"; {after.sentence()}"
        said.line(
            f"round {t + 1}: {played.n_different} of {played.n} answers differed from their "
            f"demonstrations{what}"
        )

    rounds = self_play(
        prepared.model,
        kept,
        held_out,
        method,
        prepared.recipe,
        seed=job.seed,
        stop_ids=prepared.tokenizer.stop_ids,
        max_tokens=job.max_tokens,
        folder=work.folder / "run",
        progress=said.updates("spin"),
        on_round=tell,
    )
    notes = []
    if rounds[-1].learned is None:
        notes.append(
            f"round {len(rounds)}: every answer equals its demonstration, nothing is left to learn"
        )
    record = [
        {
            "different": r.n_different,
            "of": r.n,
            **({} if r.learned is None else of_learned(r.learned)),
        }
        for r in rounds
    ]
    return Result(prepared.model, {"rounds": record}, notes)


def from_pairs(
    prepared: Prepared, work: Work, said: Said, pairs: Sequence[Pair], what: str
) -> Result:
    """The methods of pairs, on any pairs."""
    job = prepared.job
    kept, held_out = split_off(pairs, job.held_out, seed=job.seed)
    learned = learn_pairs(
        prepared.model,
        Pairs(job.data.name, kept, held_out, vocab_size=prepared.model.spec.vocab_size),
        _method(prepared),
        prepared.recipe,
        seed=job.seed,
        folder=work.folder / "run",
        progress=said.updates(what),
        on_scored=lambda n: said.line(f"reference: {n} answers scored"),
    )
    return Result(prepared.model, of_learned(learned))


# --- from rewards --------------------------------------------------------------------------------


def of_answers(prepared: Prepared, work: Work, said: Said) -> Result:
    """GRPO and PPO."""
    job, decoder, method = prepared.job, prepared.model, _method(prepared)
    rows = prepared.encoded.shown or [
        Demonstration(prompt=p, completion=(0,)) for p in prepared.encoded.prompts
    ]
    kept, held_out = split_off(rows, job.held_out, seed=job.seed)
    settings: dict[str, Any] = {
        "max_tokens": job.max_tokens,
        "stop_ids": prepared.tokenizer.stop_ids,
    }
    is_group = isinstance(method, GRPO)
    model: nn.Module = decoder if is_group else WithValue(decoder)
    prompts, others = [r.prompt for r in kept], [r.prompt for r in held_out]
    frozen = frozen_copy(decoder) if method.beta and not job.lora else None
    rollouts = Rollouts(
        job.data.name,
        model,
        prompts,
        _reward(prepared, kept),
        method,
        temperature=job.temperature,
        frozen=frozen,
        n_updates=1 if is_group else 2,
        **settings,
    )
    of_held_out = _reward(prepared, held_out)
    before = asked(model, others, of_held_out, seed=job.seed, **settings)

    def evaluate(model: nn.Module) -> dict[str, float]:
        return asked(model, others, of_held_out, seed=job.seed, **settings)

    def progress(update: Update) -> None:
        said.work(job.method, update.step, update.n_steps)
        if update.step % 10 == 0 and rollouts.seen:
            last = rollouts.seen[-10:]
            said.line(
                f"update {update.step}: reward {sum(s['reward'] for s in last) / len(last):.3f}, "
                f"{sum(s['tokens'] for s in last) / len(last):.0f} tokens an answer"
            )

    loss = (
        GroupLoss(method, max_tokens=job.max_tokens)
        if isinstance(method, GRPO)
        else ActorCriticLoss(method)
    )
    history = train(
        model,
        rollouts,
        prepared.recipe,
        seed=job.seed,
        folder=work.folder / "run",
        loss=loss,
        evaluate=evaluate,
        progress=progress,
    )
    record = {"before": before, "after": history.scores, "answers": rollouts.seen}
    return Result(decoder, record)


def _reward(prepared: Prepared, rows: Sequence[Demonstration]) -> Reward:
    """Rewards of answers to `rows`, by their places."""
    job, tokenizer = prepared.job, prepared.tokenizer
    if job.reward == "exact":
        wanted = decoded([r.completion for r in rows], tokenizer)

        def exact(places: Sequence[int], said: Sequence[Ids]) -> list[float]:
            found = decoded(said, tokenizer)
            return [float(text == wanted[i]) for i, text in zip(places, found, strict=True)]

        return exact
    assert job.reward is not None
    model = load_reward_model(job.reward)
    if model.decoder.spec.vocab_size != prepared.model.spec.vocab_size:
        raise InputError(
            f"--reward: a model of {model.decoder.spec.vocab_size} tokens cannot read answers of "
            f"one of {prepared.model.spec.vocab_size}; train it from the same model"
        )

    def scored(places: Sequence[int], said: Sequence[Ids]) -> list[float]:
        rewards = model.score([(rows[i].prompt, s) for i, s in zip(places, said, strict=True)])
        return [float(x) for x in rewards]

    return scored


# --- records -------------------------------------------------------------------------------------


def of_learned(learned: Learned) -> dict[str, Any]:
    history = learned.history
    found: dict[str, Any] = {
        "loss": history.loss,
        "tokens": history.n_tokens,
        "train_s": history.wall_s,
        "scores": learned.scores,
    }
    if learned.before is not None and learned.after is not None:
        found["before"], found["after"] = learned.before.to_json(), learned.after.to_json()
        found["displacement"] = learned.after.sentence()
    return found
