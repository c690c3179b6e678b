"""Tiny models and TRL's own trainers over them, for parity: nothing is downloaded."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from worthit.align.sequences import Pair, Rated
from worthit.nn.load import load_model

WORDS = ["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(60))]
# Lengths differ within and between pairs; prompts too.
TEXTS = [
    ("w1 w2", " w3 w4 w5", " w6"),
    ("w7", " w8", " w9 w10 w11 w12"),
    ("w13 w14 w15", " w16 w17", " w18 w19"),
    ("w20", " w21 w22 w23 w24 w25", " w26 w27"),
    ("w28 w29", " w30", " w31 w32 w33"),
]


def tokenizer() -> Any:
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    # Whitespace splits < from pad: special tokens are known whole.
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def ids(text: str) -> tuple[int, ...]:
    return tuple(WORDS.index(word) for word in text.split())


def pairs() -> list[Pair]:
    return [Pair(prompt=ids(p), chosen=(*ids(c), 1), rejected=(*ids(r), 1)) for p, c, r in TEXTS]


def rated() -> list[Rated]:
    return [
        Rated(prompt=ids(p), completion=(*ids(c if i % 3 else r), 1), is_good=bool(i % 3))
        for i, (p, c, r) in enumerate(TEXTS)
    ]


def llama(seed: int) -> transformers.LlamaForCausalLM:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.25)
    return model.eval()


def ours(model: Any, folder: Path) -> Any:
    """The same weights as our decoder."""
    model.save_pretrained(folder)
    return load_model(folder)


def arguments(kind: Any, folder: Path, **changed: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind(
            output_dir=str(folder),
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            max_length=32,
            per_device_train_batch_size=len(TEXTS),
            dataloader_pin_memory=False,
            disable_tqdm=True,
            **changed,
        )
