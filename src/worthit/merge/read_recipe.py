"""Reads recipes: YAML to a `Recipe`, with everything that is wrong with it at once.

What the recipe says is checked here; what the checkpoints say of it, in `plan`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from worthit.errors import InputError, MissingCapability, nearest, problem
from worthit.merge.methods import METHODS, PARAMETERS, Method
from worthit.merge.recipe import Path_, Recipe, Slice, Source, TokenizerChoice, TokenRule
from worthit.merge.settings import Setting, read_settings
from worthit.spec.codec import shown, suggest

KEYS = (
    "merge_method",
    "base_model",
    "models",
    "slices",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
)
SLICE_KEYS = ("sources", "base_model", "parameters")
SOURCE_KEYS = ("model", "layer_range", "parameters")
TOKENIZER_KEYS = ("source", "tokens", "pad_to_multiple_of")
TOKEN_KEYS = ("source", "force")
EMBEDDING_KEYS = ("kind", "model", "token_id", "token")
# Names of formats, by those of `mergekit` and of this project.
DTYPES = {
    "float32": "F32",
    "fp32": "F32",
    "bfloat16": "BF16",
    "bf16": "BF16",
    "float16": "F16",
    "fp16": "F16",
    "float64": "F64",
    "fp64": "F64",
}
# What `mergekit` has besides, so that nobody looks for a typing error.
ELSEWHERE = frozenset(
    ("arcee_fusion", "karcher", "multislerp", "nearswap", "nuslerp", "ram", "ramplus_tl", "sce")
)


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe file.

    Raises:
        InputError: everything that is wrong with it, at once, each with its path.
        MissingCapability: no YAML reader is installed.
    """
    path = Path(path)
    recipe, problems = parse(read_text(path), folder=path.parent, name=path.name)
    if problems or recipe is None:
        raise InputError(*problems, context=path.name)
    return recipe


def read_text(path: Path) -> str:
    """The text of a recipe file.

    Raises:
        InputError: it is not there, or is not text.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {(error.strerror or '').lower()}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text (byte {error.start})") from None


def parse(
    text: str, *, folder: Path = Path(), name: str = "", otherwise: str | None = None
) -> tuple[Recipe | None, list[str]]:
    """A recipe from its text, and every problem of it.

    Args:
        text: of the file.
        folder: that models' paths are seen from.
        name: of the file.
        otherwise: the method of a recipe that names none; None makes that a problem.

    Returns:
        The recipe as far as it can be read, None where it says too little to look at any
        checkpoint.
    """
    try:
        data = _load_yaml(text)
    except InputError as error:
        return None, list(error.problems)
    if not isinstance(data, Mapping):
        return None, [f"a recipe is a table, got {shown(data)}"]
    reader = Reader()
    if otherwise is not None:
        data = {"merge_method": otherwise} | dict(data)
    recipe = reader.recipe(data, text=text, folder=folder, name=name)
    return recipe, reader.problems


def _load_yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise MissingCapability(
            "reading a recipe needs the extra 'merge'", "pip install 'worthit[merge]'"
        ) from None

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # the package has no types
        """Refuses a key that is given twice: one of the two would be lost without a word."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: set[Any] = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=True)
                if isinstance(key, (list, dict)) or key in seen:
                    what = "is no key" if isinstance(key, (list, dict)) else "is given twice"
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key!r} {what}", key_node.start_mark
                    )
                seen.add(key)
            made: dict[Any, Any] = super().construct_mapping(node, deep)
            return made

    try:
        return yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise InputError(
            f"{where}broken YAML: {getattr(error, 'problem', None) or error}"
        ) from None
    except RecursionError:
        raise InputError("broken YAML: nested too deeply") from None


class Reader:
    """Reads the tables of a recipe, and keeps what is wrong instead of stopping at it."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.method: Method | None = None

    def recipe(
        self, data: Mapping[Any, Any], *, text: str, folder: Path, name: str
    ) -> Recipe | None:
        self._check_keys(data, KEYS, ())
        self.method = self._method(data.get("merge_method"))
        base = self._model(data["base_model"], ("base_model",)) if data.get("base_model") else None
        slices = tuple(self._slices(data, base))
        parameters = self._settings(data.get("parameters"), ("parameters",))
        dtypes = [self._dtype(data.get(key), (key,)) for key in ("dtype", "out_dtype")]
        tokenizer = self._tokenizer(data)
        chat = self._chat_template(data.get("chat_template"))
        if self.method is None or not slices:
            return None
        return Recipe(
            method=self.method,
            slices=slices,
            is_whole=bool(data.get("models")),
            base_model=base,
            parameters=parameters,
            dtype=dtypes[0],
            out_dtype=dtypes[1],
            tokenizer=tokenizer,
            chat_template=chat,
            warnings=tuple(self.warnings),
            text=text,
            folder=folder,
            name=name,
        )

    def _say(self, path: Path_, message: str) -> None:
        self.problems.append(problem(path, message))

    def _check_keys(self, data: Mapping[Any, Any], known: tuple[str, ...], path: Path_) -> None:
        for key in data:
            if key in known:
                continue
            if key == "modules" and not path:
                self._say(("modules",), "not read here; use models, or slices of one stack")
            else:
                self._say((*path, str(key)), suggest(str(key), known))

    def _method(self, data: Any) -> Method | None:
        if data is None:
            self._say(("merge_method",), f"missing; pick one of {', '.join(METHODS)}")
            return None
        name = str(data).replace("-", "_")
        if name in METHODS:
            return METHODS[name]
        if name in ELSEWHERE:
            advice = f"not one of the methods here: {', '.join(METHODS)}"
        else:
            near = nearest(name, METHODS)
            advice = (
                f"did you mean {' or '.join(near)}?"
                if near
                else f"pick one of {', '.join(METHODS)}"
            )
        self._say(("merge_method",), f"unknown method {shown(data)}; {advice}")
        return None

    def _slices(self, data: Mapping[Any, Any], base: str | None) -> Iterator[Slice]:
        given = [key for key in ("models", "slices") if data.get(key)]
        if len(given) != 1:
            got = "both" if given else "neither"
            if given or "modules" not in data:
                self._say((), f"a recipe has either models or slices, got {got}")
        if not given:
            return
        entries = data[given[0]]
        if not isinstance(entries, list):
            self._say((given[0],), f"must be a list, got {shown(entries)}")
        elif given[0] == "models":
            sources = [self._source(e, ("models", i)) for i, e in enumerate(entries)]
            found = [s for s in sources if s is not None]
            # A base that is not among the models is one more of them, as in `mergekit`.
            if base is not None and base not in [s.model for s in found]:
                found.append(Source(model=base, layers=None, path=("base_model",)))
            self._check_sources(found, base, ("models",))
            if found:
                yield Slice(sources=tuple(found), base_model=base, path=())
        else:
            for i, entry in enumerate(entries):
                made = self._slice(entry, base, ("slices", i))
                if made is not None:
                    yield made

    def _slice(self, data: Any, base: str | None, path: Path_) -> Slice | None:
        if not isinstance(data, Mapping):
            self._say(path, f"must be a table with sources, got {shown(data)}")
            return None
        self._check_keys(data, SLICE_KEYS, path)
        if data.get("base_model"):
            base = self._model(data["base_model"], (*path, "base_model"))
        entries = data.get("sources")
        at = (*path, "sources")
        if not isinstance(entries, list) or not entries:
            self._say(at, f"must be a list of models with layer_range, got {shown(entries)}")
            return None
        found = [self._source(e, (*at, i), has_range=True) for i, e in enumerate(entries)]
        sources = [s for s in found if s is not None]
        lengths = {s.layers[1] - s.layers[0] for s in sources if s.layers}
        if len(lengths) > 1:
            counts = ", ".join(map(str, sorted(lengths)))
            self._say(at, f"all sources of a slice need as many layers, got {counts}")
        self._check_sources(sources, base, at)
        parameters = self._settings(data.get("parameters"), (*path, "parameters"))
        if not sources:
            return None
        return Slice(sources=tuple(sources), base_model=base, parameters=parameters, path=path)

    def _check_sources(self, sources: list[Source], base: str | None, path: Path_) -> None:
        """Whether the method can merge so many models with this base."""
        names = [s.model for s in sources]
        for name in dict.fromkeys(n for n in names if names.count(n) > 1):
            self._say(path, f"{name} is listed {names.count(name)} times; list it once")
        method = self.method
        if method is None or not sources:
            return
        n = len(set(names))
        if method.base in ("start", "end"):
            if base is None:
                what = (
                    "the model that the others came from" if method.base == "start" else "one end"
                )
                self._say(("base_model",), f"missing; {method.id} needs {what}")
            elif base not in names:
                self._say(path, f"must list the base_model {base} too")
            if method.base == "start":
                n -= base in names
        if n < method.least or (method.most is not None and n > method.most):
            wanted = f"{method.least} or more models"
            if method.most is not None:
                wanted = "1 model" if method.most == 1 else f"{method.most} models"
            besides = " besides the base" if method.base == "start" else ""
            self._say(path, f"{method.id} merges {wanted}{besides}, got {n}")

    def _source(self, data: Any, path: Path_, *, has_range: bool = False) -> Source | None:
        if isinstance(data, str) and not has_range:
            data = {"model": data}
        if not isinstance(data, Mapping):
            self._say(path, f"must be a table with a model, got {shown(data)}")
            return None
        self._check_keys(data, SOURCE_KEYS if has_range else ("model", "parameters"), path)
        layers = None
        if has_range:
            layers = self._range(data.get("layer_range"), (*path, "layer_range"))
        parameters = self._settings(data.get("parameters"), (*path, "parameters"))
        if data.get("model") is None:
            self._say((*path, "model"), "missing; give a folder or a hub id")
            return None
        model = self._model(data["model"], (*path, "model"))
        if model is None or (has_range and layers is None):
            return None
        return Source(model=model, layers=layers, parameters=parameters, path=path)

    def _range(self, data: Any, path: Path_) -> tuple[int, int] | None:
        if (
            isinstance(data, list)
            and len(data) == 2
            and all(type(n) is int for n in data)
            and 0 <= data[0] < data[1]
        ):
            return data[0], data[1]
        got = "nothing" if data is None else shown(data)
        self._say(path, f"must be [first, one past the last] with first < last, got {got}")
        return None

    def _model(self, data: Any, path: Path_) -> str | None:
        """A model as text: `path`, `org/name@revision`, either with `+adapter`."""
        if isinstance(data, Mapping):
            inner = data.get("model", data)
            text = inner
            if isinstance(inner, Mapping):
                text = inner.get("path")
                if isinstance(text, str) and inner.get("revision"):
                    text = f"{text}@{inner['revision']}"
            lora = data.get("lora")
            if isinstance(lora, Mapping):
                lora = lora.get("path")
            data = f"{text}+{lora}" if lora and isinstance(text, str) else text
        if isinstance(data, str) and data.strip():
            return data.strip()
        self._say(path, f"must be a folder or a hub id, got {shown(data)}")
        return None

    def _settings(self, data: Any, path: Path_) -> dict[str, Setting]:
        if self.method is None:
            return {}
        known = {p.name: p for p in self.method.parameters}
        settings, problems, warnings = read_settings(data, known, PARAMETERS, path)
        self.problems += problems
        self.warnings += warnings
        return settings

    def _dtype(self, data: Any, path: Path_) -> str | None:
        if data is None:
            return None
        name = str(data).removeprefix("torch.")
        if name not in DTYPES:
            self._say(path, f"unknown format {shown(data)}; pick one of {', '.join(DTYPES)}")
            return None
        return DTYPES[name]

    def _tokenizer(self, data: Mapping[Any, Any]) -> TokenizerChoice | None:
        source, table = data.get("tokenizer_source"), data.get("tokenizer")
        if source is not None and table is not None:
            self._say(("tokenizer",), "must not stand beside tokenizer_source; give one of them")
        if table is None:
            if source is None:
                return None
            name = self._model(source, ("tokenizer_source",))
            return (
                None if name is None else TokenizerChoice(source=name, path=("tokenizer_source",))
            )
        if not isinstance(table, Mapping):
            self._say(("tokenizer",), f"must be a table with a source, got {shown(table)}")
            return None
        self._check_keys(table, TOKENIZER_KEYS, ("tokenizer",))
        name = self._model(table.get("source", "union"), ("tokenizer", "source"))
        multiple = table.get("pad_to_multiple_of")
        if multiple is not None and (type(multiple) is not int or multiple < 1):
            self._say(
                ("tokenizer", "pad_to_multiple_of"),
                f"must be a whole number above 0, got {shown(multiple)}",
            )
            multiple = None
        tokens = self._tokens(table.get("tokens"))
        if name is None:
            return None
        return TokenizerChoice(
            source=name, tokens=tokens, multiple_of=multiple or 1, path=("tokenizer",)
        )

    def _tokens(self, data: Any) -> dict[str, TokenRule]:
        if data is None:
            return {}
        if not isinstance(data, Mapping):
            self._say(("tokenizer", "tokens"), f"must be a table, got {shown(data)}")
            return {}
        rules = {}
        for token, entry in data.items():
            at = ("tokenizer", "tokens", str(token))
            rule = self._token(entry if isinstance(entry, Mapping) else {"source": entry}, at)
            if rule is not None:
                rules[str(token)] = rule
        return rules

    def _token(self, data: Mapping[Any, Any], path: Path_) -> TokenRule | None:
        self._check_keys(data, TOKEN_KEYS, path)
        forced = data.get("force", False)
        if not isinstance(forced, bool):
            self._say((*path, "force"), f"must be true or false, got {shown(forced)}")
        source, at = data.get("source"), (*path, "source")
        if source is None:
            return TokenRule(has_source=False, is_forced=bool(forced))
        if not (isinstance(source, Mapping) and "kind" in source):
            model = self._model(source, at)
            return None if model is None else TokenRule(model=model, is_forced=bool(forced))
        self._check_keys(source, EMBEDDING_KEYS, at)
        if source["kind"] == "zero":
            return TokenRule(is_forced=bool(forced))
        if source["kind"] != "model_token":
            self._say((*at, "kind"), f"must be zero or model_token, got {shown(source['kind'])}")
            return None
        model = self._model(source.get("model"), (*at, "model"))
        token, number = source.get("token"), source.get("token_id")
        if (token is None) == (number is None):
            self._say(at, "must have either a token or a token_id")
        if number is not None and (type(number) is not int or number < 0):
            self._say((*at, "token_id"), f"must be a whole number, got {shown(number)}")
            number = None
        if model is None:
            return None
        text = None if token is None else str(token)
        return TokenRule(model=model, token=text, token_id=number, is_forced=bool(forced))

    def _chat_template(self, data: Any) -> str | None:
        if data is None:
            return None
        if data == "auto" or (isinstance(data, str) and "{" in data):
            return str(data)
        self._say(
            ("chat_template",),
            f"must be auto, or a template in Jinja, got {shown(data)}; names of templates that "
            "ship with mergekit are not known here",
        )
        return None
