"""Autoencoders on disk, in the layout of sae_lens: `cfg.json` beside `sae_weights.safetensors`.

What is written is what is used: decoder rows of length 1, latents as large as what they add, a
BatchTopK autoencoder as the JumpReLU one that it is in use. Older folders are read too: those that
name an activation function in place of an architecture. What a config asks for and is not
implemented is refused; a TopK autoencoder read as a rectified one would be no error, just wrong.

What sae_lens does to inputs (`normalize_activations`), and what is made of it here: `layer_norm`
and `constant_norm_rescale` are done to each input and undone, in use. `expected_average_only_in`,
one factor, and `covariance_whitening`, an affine map, are folded into the weights when a training
ends; a checkpoint of one that is not over has them beside (`activation_scaler.json`,
`activation_whitening.safetensors`), and they are folded when it is read. A map that is not there is
refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from worthit.errors import InputError
from worthit.interp.sae.base import SparseAutoencoder
from worthit.interp.sae.batchtopk import BatchTopKSae
from worthit.interp.sae.kinds import make_sae
from worthit.train.history import disk_error

LAYOUT = "6.0.0"
CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
# What sae_lens leaves beside the weights of a training that is not over.
SCALER, WHITENING = "activation_scaler.json", "activation_whitening.safetensors"
# Of each input; those of all inputs are folded into the weights.
NORMALISATIONS = ("none", "layer_norm", "constant_norm_rescale")
FOLDED = ("expected_average_only_in", "covariance_whitening")
# Biases and the like that are called the same on both sides.
SAME = ("b_dec", "b_enc", "b_gate", "b_mag", "r_mag", "threshold")
# Ours to transformer-lens', which names hooks in these folders.
HOOKS = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "mixer_out": "hook_attn_out",
    "ffn_out": "hook_mlp_out",
    "ffn_hidden": "mlp.hook_post",
    "mixer_in": "ln1.hook_normalized",
    "ffn_in": "ln2.hook_normalized",
}


def save_sae(
    sae: SparseAutoencoder, folder: Path, *, at: str = "", about: Mapping[str, Any] | None = None
) -> Path:
    """Write `sae` as it is used; its norms are folded first, which changes no reconstruction.

    Args:
        at: the point that it reads.
        about: what else `metadata` shall hold: the model's name, how it was trained.

    Raises:
        WorthitError: the disk does not take it; nothing half written stays.
    """
    folder = Path(folder)
    sae.fold_norms()
    kind = "jumprelu" if isinstance(sae, BatchTopKSae) else sae.kind
    tensors = {"W_enc": sae.encoder.T, "W_dec": sae.decoder}
    tensors |= {name: getattr(sae, name) for name in SAME if hasattr(sae, name)}
    if isinstance(sae, BatchTopKSae):
        tensors["threshold"] = torch.full_like(sae.b_enc, float(sae.level))
    config: dict[str, Any] = {
        "architecture": kind,
        "d_in": sae.config.d_in,
        "d_sae": sae.config.width,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.config.is_centred,
        "normalize_activations": sae.config.normalisation,
        "reshape_activations": "none",
        "metadata": {
            "hook_name": hook_name(at),
            # The layout's version: earlier ones are read in another way.
            "sae_lens_version": LAYOUT,
            "training_architecture": sae.kind,
            **(about or {}),
            "worthit": {"at": at},
        },
    }
    if kind == "topk":
        config["k"] = sae.config.k  # type: ignore[attr-defined]  # of this kind
        config["rescale_acts_by_decoder_norm"] = False
    parts = {
        WEIGHTS: {name: t.detach().float().contiguous() for name, t in tensors.items()},
        CONFIG: json.dumps(config, indent=1),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in parts.items():
            beside = folder / f"{name}.part"
            if isinstance(content, str):
                beside.write_text(content)
            else:
                save_file(content, beside)
            beside.replace(folder / name)
    except OSError as error:
        raise disk_error(folder, error) from error
    return folder


def load_sae(folder: Path | str) -> SparseAutoencoder:
    """The autoencoder of a folder; `point_of` says what it reads.

    Raises:
        InputError: no such folder, an architecture or a normalisation that is not implemented, or
            tensors that do not fit.
    """
    folder = Path(folder)
    config = read_config(folder)
    kind, options = _options(config, folder)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder / WEIGHTS}: cannot be read ({error})") from None
    if "log_threshold" in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    tensors = {name: t.float() for name, t in tensors.items()}
    if "scaling_factor" in tensors:
        factor = tensors.pop("scaling_factor")
        if config.get("finetuning_scaling_factor"):
            tensors["W_dec"] = tensors["W_dec"] * factor[:, None]
    if tensors.get("W_enc") is not None:
        tensors["encoder"] = tensors.pop("W_enc").T.contiguous()
    if tensors.get("W_dec") is not None:
        tensors["decoder"] = tensors.pop("W_dec")
    if "topk_threshold" in tensors:
        tensors["level"] = tensors.pop("topk_threshold").double()
    sae = make_sae(kind, **options)
    _put(sae, tensors, folder)
    _fold(sae, config, folder)
    sae.requires_grad_(requires_grad=False).eval()
    return sae


def _fold(sae: SparseAutoencoder, config: Mapping[str, Any], folder: Path) -> None:
    """What was done to all inputs of a training, into the weights."""
    normalisation = _normalisation(config)
    if normalisation == "expected_average_only_in":
        factor = config.get("norm_scaling_factor") or _read(folder / SCALER).get("scaling_factor")
        # Without one it was folded when training ended.
        if factor:
            sae.scale_inputs(float(factor))
    if normalisation == "covariance_whitening":
        try:
            found = load_file(folder / WHITENING)
            sae.whiten_inputs(found["mean"], found["matrix"], found["inverse_matrix"])
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            raise InputError(
                f"{folder}: was trained on whitened inputs (normalize_activations is "
                f"'covariance_whitening'), and {WHITENING} cannot be read ({error}); put the one "
                "that its training wrote beside it, or take its final folder, where it is folded"
            ) from None


def _normalisation(config: Mapping[str, Any]) -> str:
    """Its name; older configs have true or false."""
    found = config.get("normalize_activations", "none")
    if found is True:
        return "expected_average_only_in"
    return str(found) if found else "none"


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no such file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    return found if isinstance(found, dict) else {}


def read_config(folder: Path) -> dict[str, Any]:
    """The `cfg.json` of a folder."""
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read: {error.strerror}; an autoencoder's folder has "
            f"{CONFIG} and {WEIGHTS}"
        ) from None
    except ValueError as error:
        raise InputError(f"{path}: is no JSON ({error})") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: must be an object, got {type(config).__name__}")
    return config


def point_of(folder: Path | str) -> str:
    """The point that an autoencoder reads, by our name.

    Raises:
        InputError: it does not say, or says a hook that is no point of ours.
    """
    config = read_config(Path(folder))
    metadata = config.get("metadata", {})
    ours = metadata.get("worthit", {}).get("at")
    if ours:
        return str(ours)
    hook = metadata.get("hook_name") or config.get("hook_name") or config.get("hook_point") or ""
    parts = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    for name, theirs in HOOKS.items():
        if parts and parts[2] == theirs:
            return f"layers.{parts[1]}.{name}"
    raise InputError(
        f"{folder}: does not say which point it reads (hook_name is {hook!r}); give --at"
    )


def hook_name(at: str) -> str:
    """What transformer-lens calls a point of ours; the name itself where it has none."""
    parts = at.split(".")
    if len(parts) == 3 and parts[2] in HOOKS:
        return f"blocks.{parts[1]}.{HOOKS[parts[2]]}"
    return at


def _options(config: Mapping[str, Any], folder: Path) -> tuple[str, dict[str, Any]]:
    """The kind and its options, of configs new and old."""
    kind = config.get("architecture", "standard")
    activation = config.get("activation_fn_str", config.get("activation_fn", "relu"))
    k = config.get("k", (config.get("activation_fn_kwargs") or {}).get("k"))
    if kind == "standard" and activation == "topk":
        kind = "topk"
    elif activation not in ("relu", "topk"):
        raise InputError(f"{folder}: the activation function {activation!r} is not implemented")
    known = ("standard", "topk", "jumprelu", "gated", "batchtopk")
    if kind not in known:
        raise InputError(
            f"{folder}: the architecture {kind!r} is not implemented; known are {', '.join(known)}"
        )
    normalisation = _normalisation(config)
    normalisation = "none" if normalisation in FOLDED else normalisation
    if normalisation not in NORMALISATIONS:
        raise InputError(f"{folder}: normalize_activations {normalisation!r} is not implemented")
    if config.get("reshape_activations", "none") not in ("none", "hook_z"):
        raise InputError(
            f"{folder}: reshape_activations {config['reshape_activations']!r} is not implemented"
        )
    missing = [name for name in ("d_in", "d_sae") if name not in config]
    if missing:
        raise InputError(f"{folder / CONFIG}: {', '.join(missing)} missing")
    options: dict[str, Any] = {
        "d_in": config["d_in"],
        "width": config["d_sae"],
        "is_centred": bool(config.get("apply_b_dec_to_input", True)),
        "normalisation": normalisation,
    }
    if kind in ("topk", "batchtopk"):
        if k is None:
            raise InputError(f"{folder / CONFIG}: k missing, which {kind} needs")
        options |= {"k": k, "is_rescaled": bool(config.get("rescale_acts_by_decoder_norm", False))}
    return str(kind), options


def _put(sae: SparseAutoencoder, tensors: dict[str, Tensor], folder: Path) -> None:
    wanted = dict(sae.state_dict())
    problems = [f"{name}: missing" for name in wanted if name not in tensors]
    problems += [f"{name}: unknown" for name in tensors if name not in wanted]
    problems += [
        f"{name}: must be {list(wanted[name].shape)}, got {list(t.shape)}"
        for name, t in tensors.items()
        if name in wanted and t.shape != wanted[name].shape
    ]
    problems += [
        f"{n}: holds values that are no numbers"
        for n, t in tensors.items()
        if not t.isfinite().all()
    ]
    if problems:
        raise InputError(*problems, context=str(folder / WEIGHTS))
    sae.load_state_dict(tensors)
