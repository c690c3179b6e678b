"""What an output folder has beside its weights: config, tokenizer, chat template, recipe, card."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from worthit.merge.members import Member, is_head, layer_key, text_config
from worthit.merge.output import n_bytes_of, write_json
from worthit.merge.plan import Plan
from worthit.merge.tokens import TOKENIZER_CONFIG, write_tokenizer

RECIPE = "merge_recipe.yml"
CARD = "README.md"
CHAT_TEMPLATE = "chat_template.jinja"
TOKENIZER_FILES = (
    "tokenizer.json",
    TOKENIZER_CONFIG,
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "vocab.json",
    CHAT_TEMPLATE,
    "chat_template.json",
)
OTHER_FILES = ("generation_config.json", "preprocessor_config.json")
# Names of formats in a config.
DTYPE_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Lists of a config with one entry a layer: they follow the layers into their new order.
_BY_LAYER = re.compile(r"layer|block|types?$")
# Numbers of a config that count layers, and cannot be known for a new order of them.
COUNTING = ("max_window_layers", "first_k_dense_replace", "attn_layer_offset", "mlp_only_layers")


def write_beside(folder: Path, plan: Plan, *, seed: int, name: str) -> None:
    """Write everything but the weights into `folder`.

    Args:
        folder: with the weights.
        plan: of the merge.
        seed: of the merge, for the card.
        name: of the model, for the card.
    """
    write_json(folder / "config.json", output_config(plan))
    tokens = plan.tokens
    home = plan.donor.folder if tokens is None else tokens.folder
    for file in TOKENIZER_FILES:
        _copy(home / file, folder / file)
    for file in OTHER_FILES:
        _copy(plan.donor.folder / file, folder / file)
    if tokens is not None and tokens.added:
        write_tokenizer(home, folder, tokens.ids, tokens.added)
    template = _chosen_template(plan)
    if template is not None:
        (folder / CHAT_TEMPLATE).write_text(template, encoding="utf-8")
        _drop_template(folder / TOKENIZER_CONFIG)
    (folder / RECIPE).write_text(plan.recipe.text, encoding="utf-8")
    (folder / CARD).write_text(card(plan, seed=seed, name=name), encoding="utf-8")


def _copy(source: Path, target: Path) -> None:
    if source.is_file():
        shutil.copyfile(source, target)


def output_config(plan: Plan) -> dict[str, Any]:
    """The donor's config for the merged weights: layers, tokens, format, a head of its own."""
    config = copy.deepcopy(dict(plan.donor.config))
    config.pop("_name_or_path", None)
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    if plan.n_layers is not None and (key := layer_key(text)) is not None:
        for name, values in _by_layer(plan).items():
            text[name] = values
        text[key] = plan.n_layers
    if plan.tokens is not None:
        text["vocab_size"] = plan.tokens.alignment.n_rows
    sizes: Counter[str] = Counter()
    for job in plan.jobs:
        sizes[job.out_dtype] += n_bytes_of(job)
    [(most, _)] = sizes.most_common(1)
    if most in DTYPE_NAMES:
        config["dtype" if "dtype" in config else "torch_dtype"] = DTYPE_NAMES[most]
    heads = [job for job in plan.jobs if is_head(job.name)]
    if any(not is_head(stored.name) for job in heads for _, stored in job.inputs):
        # The head was merged from an embedding and a head, and is neither.
        config["tie_word_embeddings"] = False
        if "tie_word_embeddings" in text:
            text["tie_word_embeddings"] = False
    return config


def counting_keys(plan: Plan) -> list[str]:
    """Keys of the config that count layers, where the layers were given another order."""
    if plan.n_layers is None or plan.n_layers == plan.donor.n_layers:
        return []
    return [key for key in COUNTING if text_config(plan.donor.config).get(key)]


def _by_layer(plan: Plan) -> dict[str, list[Any]]:
    """The config's lists with one entry a layer, put together as the layers are."""
    made: dict[str, list[Any]] = {}
    for name, values in text_config(plan.donor.config).items():
        if not (isinstance(values, list) and _BY_LAYER.search(name)):
            continue
        if len(values) != plan.donor.n_layers:
            continue
        made[name] = []
        for piece in plan.recipe.slices:
            source = piece.sources[0]
            start, stop = source.layers or (0, 0)
            of_source = text_config(plan.members[source.model].config).get(name)
            made[name] += (of_source if isinstance(of_source, list) else values)[start:stop]
    return {name: values for name, values in made.items() if len(values) == plan.n_layers}


# --- chat templates -----------------------------------------------------------------------------


def _chosen_template(plan: Plan) -> str | None:
    """The template that the recipe asks for: its own text, or the most common of the models."""
    wanted = plan.recipe.chat_template
    if wanted != "auto":
        return wanted
    found = Counter(t for m in plan.members.values() if (t := read_template(m)) is not None)
    return found.most_common(1)[0][0] if found else None


def read_template(member: Member) -> str | None:
    """A checkpoint's chat template, from its own file or from the tokenizer's config."""
    path = member.folder / CHAT_TEMPLATE
    if path.is_file():
        return path.read_text(encoding="utf-8").strip()
    path = member.folder / TOKENIZER_CONFIG
    if not path.is_file():
        return None
    config = json.loads(path.read_text(encoding="utf-8"))
    found = config.get("chat_template")
    if isinstance(found, list):
        by_name = {entry.get("name"): entry.get("template") for entry in found}
        found = by_name.get("default")
    return found.strip() if isinstance(found, str) else None


def _drop_template(path: Path) -> None:
    """Take the old template out of a tokenizer's config, where it would be in the way."""
    if path.is_file():
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("chat_template", None) is not None:
            write_json(path, config)


# --- the card -----------------------------------------------------------------------------------


def card(plan: Plan, *, seed: int, name: str) -> str:
    """The model card: what was merged, how, and the recipe that does it again."""
    recipe = plan.recipe
    hub_ids = [m for m in recipe.models if not Path(m.partition("+")[0]).expanduser().exists()]
    front = ["---", "library_name: transformers", "tags:", "- merge", "- worthit"]
    if hub_ids:
        front += ["base_model:", *(f"- {json.dumps(model)}" for model in hub_ids)]
    n_params = sum(_numel(job.shape) for job in plan.jobs)
    layers = plan.n_layers or plan.donor.n_layers
    facts = [f"Method: {recipe.method.title}."]
    if recipe.base_model:
        facts.append(f"Base: `{recipe.base_model}`.")
    if recipe.method.is_random:
        facts.append(f"Seed: {seed}.")
    facts.append(f"{n_params:,} parameters in {len(plan.jobs)} tensors, {layers} layers.")
    rows = [
        f"| `{model}` | {member.n_layers} | {_n_params(member):,} |"
        for model, member in plan.members.items()
    ]
    # A fence longer than any in the recipe.
    longest = max((len(m) for m in re.findall("`+", recipe.text)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join(
        [
            *front,
            "---",
            "",
            f"# {name}",
            "",
            "A merge of checkpoints, made by `worthit merge`; no training took place.",
            "",
            *(f"- {fact}" for fact in facts),
            "",
            "| model | layers | parameters |",
            "|---|---:|---:|",
            *rows,
            "",
            "## Recipe",
            "",
            f"{fence}yaml",
            recipe.text.strip(),
            fence,
            "",
        ]
    )


def _n_params(member: Member) -> int:
    return sum(tensor.numel for tensor in member.tensors.values())


def _numel(shape: tuple[int, ...]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n
