"""What layers give out, seen from outside: with plain layers, and with compiled ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from decode.tiny import checkpoint

import worthit
from worthit.decode.speculative.taps import Taps
from worthit.errors import InputError
from worthit.nn.inference import optimize

IDS = torch.tensor([[5, 9, 200, 31, 7, 100, 4]])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    checkpoint(
        folder,
        num_hidden_layers=5,
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
    )
    return folder


@torch.inference_mode()
@pytest.mark.parametrize("layers", [(4,), (0, 2, 4), (1, 3), (0,)])
def test_compiled_layers_show_what_plain_ones_do(source: Path, layers: tuple[int, ...]) -> None:
    plain, quick = worthit.load_model(source), optimize(worthit.load_model(source))
    if quick.native is None:
        pytest.skip("this machine compiles no layers")
    want, taps = Taps(plain, layers), Taps(quick, layers)
    caches = plain.new_cache(), quick.new_cache()
    for piece in IDS.split([4, 1, 2], dim=1):
        logits = plain(piece, cache=caches[0])
        torch.testing.assert_close(quick(piece, cache=caches[1]), logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(taps.features(), want.features(), rtol=1e-4, atol=1e-4)
    taps.close()
    want.close()
    # Nothing else has changed, once they are closed.
    again = quick.new_cache()
    torch.testing.assert_close(quick(IDS, cache=again), plain(IDS), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_pass_that_is_left_to_the_plain_layers_is_seen_too(source: Path) -> None:
    plain, quick = worthit.load_model(source), optimize(worthit.load_model(source))
    want, taps = Taps(plain, (1, 4)), Taps(quick, (1, 4))
    plain(IDS)
    quick(IDS)  # without a cache
    torch.testing.assert_close(taps.features(), want.features(), rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="layers are from 0 to 4, got 5"):
        Taps(plain, (5,))
