"""Sets that come with the package, by name: what `worthit steer`, `probe`, `patch` and `edit` read.

| kind | names |
|---|---|
| `pairs`, `labels` | `language`, `sentiment`, `refusal`, `truth`, and other forms: `sums`, ... |
| `questions` | `capitals` |
| `prompts` | `names`: who is given something; `countries`: which capital is asked for |
| `facts` | `capitals`: of a country, that of the next |
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from worthit.lab.tasks.concepts import FORMS, examples
from worthit.lab.tasks.contrasts import CAPITALS, capitals

Rows = list[dict[str, Any]]

# Names of one token each, so that prompts are as long; who comes second is the one who gives.
NAMES = (("Mary", "John"), ("Anna", "Tom"), ("Sarah", "Paul"), ("Lucy", "James"))
GIFTS = (("store", "drink"), ("park", "ball"), ("station", "ticket"), ("library", "book"))
KNOWN = ("France", "Spain", "Italy", "Germany", "Japan", "Russia", "Egypt", "England")
PARAPHRASES = (
    "The capital city of {} is",
    "The government of {} sits in the city of",
    "{}'s capital is",
)


def set_names(kind: str) -> tuple[str, ...]:
    """The names of all sets of a kind."""
    if kind in ("pairs", "labels"):
        forms = (form for forms in FORMS.values() for form in forms[1:])
        return (*FORMS, *forms)
    return {"questions": ("capitals",), "prompts": ("names", "countries"), "facts": ("capitals",)}[
        kind
    ]


def rows(name: str, kind: str) -> Rows:
    """The rows of a set, as they would stand in a file."""
    if kind in ("pairs", "labels"):
        concept = next(c for c, forms in FORMS.items() if name in (c, *forms))
        found = examples(concept, FORMS[concept][0] if name == concept else name)
        if kind == "labels":
            sides = {True: f"{concept}", False: f"not {concept}"}
            return [
                {"text": e.text, "label": sides[e.is_positive], "group": e.group} for e in found
            ]
        return [
            {"positive": a.text, "negative": b.text}
            for a, b in zip(found[::2], found[1::2], strict=True)
        ]
    if kind == "questions":
        return [{"question": question, "answer": answer} for question, answer in capitals()]
    return _prompts(name) if kind == "prompts" else _facts()


def _prompts(name: str) -> Rows:
    if name == "countries":
        return [
            {
                "clean": f"The capital of {one} is",
                "corrupt": f"The capital of {other} is",
                "right": _city(one),
                "wrong": _city(other),
            }
            for one, other in pairwise(KNOWN[:5])
        ]
    says = "When {0} and {1} went to the {2}, {3} gave a {4} to"
    return [
        {
            "clean": says.format(one, other, place, other, gift),
            "corrupt": says.format(one, other, place, one, gift),
            "right": one,
            "wrong": other,
        }
        for (one, other), (place, gift) in zip(NAMES, GIFTS, strict=True)
    ]


def _facts() -> Rows:
    found = []
    for one, other in pairwise(KNOWN[:4]):
        rest = [country for country in KNOWN if country not in (one, other)][:4]
        found.append(
            {
                "prompt": "The capital of {} is",
                "subject": one,
                "target": _city(other),
                "truth": _city(one),
                "paraphrases": list(PARAPHRASES),
                "neighbours": [[f"The capital of {c} is", _city(c)] for c in rest],
            }
        )
    return found


def _city(country: str) -> str:
    return "London" if country == "England" else CAPITALS[country]
