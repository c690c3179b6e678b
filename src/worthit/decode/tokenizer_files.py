"""A tokenizer's files beside a model's, so that a written folder reads text too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from worthit.decode.tokenizer import Tokenizer, load_tokenizer

# What writers of checkpoints call them; nothing of it is code.
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)


def copy_tokenizer(source: Path, folder: Path) -> bool:
    """Put the tokenizer of `source`, a folder or a `.gguf`, into `folder`; False without one."""
    if source.is_dir():
        if not (source / "tokenizer.json").is_file():
            return False
        for name in FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        return True
    save_tokenizer(load_tokenizer(source), folder)
    return True


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer` as the files that `tokenizer_of_folder` reads."""
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    config = {**tokenizer.special, "chat_template": tokenizer.chat_template}
    kept = {key: value for key, value in config.items() if value is not None}
    _write(folder / "tokenizer_config.json", kept)
    _write(folder / "generation_config.json", {"eos_token_id": list(tokenizer.stop_ids)})


def _write(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
