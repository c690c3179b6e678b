"""Records of the precision family: which formats change, by how many bits, and what refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
from technique_cases import device, llama_8b, mixture, serving, training

from worthit.errors import NotApplicable
from worthit.spec.formats import format_of
from worthit.spec.model import Precision
from worthit.techniques.precision import (
    bitnet,
    fp8_training,
    int4_weights,
    int8_weights,
    mx_training,
)

SERVED = (bitnet, int4_weights, int8_weights)
TRAINED = (fp8_training, mx_training)
# 32 layers of 218,112,000 parameters: 8,030,261,248 less two tables of 525,336,576 and a norm.
INSIDE = 32 * 218_112_000


def before(module):
    on = device(has_fp4=True)
    return serving(on=on) if module in SERVED else training(on=on)


def with_precision(**formats):
    return replace(llama_8b(), precision=Precision(**formats))


@pytest.mark.parametrize("module", SERVED + TRAINED, ids=lambda m: m.TECHNIQUE.id)
def test_apply_is_seen_and_taken_out_again(module):
    case = before(module)
    after = module.apply(case)
    assert not module.is_present(case)
    present = [m.TECHNIQUE.id for m in SERVED + TRAINED if m.is_present(after)]
    assert present == [module.TECHNIQUE.id]
    assert module.remove(after) == case


@pytest.mark.parametrize(
    ("module", "format", "weights_bytes"),
    [
        (int8_weights, "int8", INSIDE),
        (int8_weights, "int8-g32", INSIDE * 34 / 32),  # 32 bytes and a 16-bit scale
        (int4_weights, "int4-g128", INSIDE * 68 / 128),  # 64 bytes, 16-bit scale and zero
        (int4_weights, "int4-g32", INSIDE * 18 / 32),  # 16 bytes and a 16-bit scale
    ],
)
def test_weight_bytes_of_llama_8b(module, format, weights_bytes):
    after = module.apply(serving(), format=format).model.precision
    assert INSIDE * format_of(after.weights).bytes == weights_bytes
    assert after.activations == after.embeddings == after.cache == "bf16"


def test_ternary_weights_take_an_eighth_and_meet_8_bit_activations():
    after = bitnet.apply(serving()).model.precision
    assert format_of(after.weights).bits == 16 / 8
    assert (after.activations, after.operands) == ("bf16", "int8")
    assert after.embeddings == "bf16"


@pytest.mark.parametrize(
    ("module", "stored", "message"),
    [
        (int8_weights, "fp8-block", r"in int8 \(8 bits\), and it is in fp8-block \(8.002 bits\)"),
        (int8_weights, "mxfp4", r"in mxfp4 \(4.25 bits\) already"),
        (int4_weights, "q4_k", r"in q4_k \(4.5 bits\) already"),
        (bitnet, "ternary", r"in ternary \(2 bits\) already"),
    ],
)
def test_what_is_narrow_already_is_refused(module, stored, message):
    with pytest.raises(NotApplicable, match=message):
        module.apply(serving(with_precision(weights=stored)))


def test_four_bits_still_save_on_eight():
    after = int4_weights.apply(serving(with_precision(weights="fp8-block")))
    assert after.model.precision.weights == "int4-g128"


def test_microscaled_checkpoints_count_as_4_bit_weights():
    assert int4_weights.is_present(serving(with_precision(weights="mxfp4")))
    assert not int8_weights.is_present(serving(with_precision(weights="ternary")))


@pytest.mark.parametrize("module", SERVED, ids=lambda m: m.TECHNIQUE.id)
def test_weight_only_formats_do_not_train(module):
    with pytest.raises(NotApplicable, match="this case trains one"):
        module.apply(training())


@pytest.mark.parametrize("module", TRAINED, ids=lambda m: m.TECHNIQUE.id)
def test_training_recipes_do_not_serve(module):
    with pytest.raises(NotApplicable, match="this case serves one"):
        module.apply(serving(on=device(has_fp4=True)))


def test_fp8_needs_units_for_it():
    with pytest.raises(NotApplicable, match="Made-up accelerator has none; H100"):
        fp8_training.apply(training(on=device(has_fp8=False)))


def test_microscaling_needs_more_than_fp8_and_points_to_what_fits():
    with pytest.raises(NotApplicable, match="has none; fp8-training is for it; B200"):
        mx_training.apply(training(on=device(has_fp8=True)))
    with pytest.raises(NotApplicable, match="has none; B200"):
        mx_training.apply(training(on=device(has_fp8=False)))


def test_only_what_enters_products_is_narrow_in_training():
    case = before(fp8_training)
    after = fp8_training.apply(case)
    precision = after.model.precision
    assert (precision.weights, precision.activations) == ("bf16", "bf16")
    assert precision.math_of(precision.weights) == "fp8"
    assert after.runtime.optimizer_bytes_per_param == 12
    mx = mx_training.apply(case).model.precision
    assert format_of(mx.operands).bits == 8 + 8 / 32  # an 8-bit exponent for every 32


def experts_apart(weights="bf16", experts="mxfp4"):
    """A mixture whose routed experts have a format of their own, as gpt-oss."""
    return replace(mixture(), precision=Precision(weights=weights, experts=experts))


def test_narrow_experts_stay_while_the_rest_is_narrowed():
    after = int8_weights.apply(serving(experts_apart())).model.precision
    assert (after.weights, after.experts) == ("int8", "mxfp4")
    four = int4_weights.apply(serving(experts_apart(experts="fp8"))).model.precision
    assert (four.weights, four.experts) == ("int4-g128", "int4-g128")


def test_narrow_experts_are_in_place_and_widen_to_the_rest():
    case = serving(experts_apart())
    assert int4_weights.is_present(case)
    assert int4_weights.remove(case) == serving(mixture())


def test_nothing_left_to_narrow():
    with pytest.raises(
        NotApplicable, match=r"the experts in int8 .* in mxfp4 \(4.25 bits\) already"
    ):
        int8_weights.apply(serving(experts_apart(weights="int8")))


def test_ternary_weights_leave_no_experts_apart():
    case = replace(before(bitnet), model=experts_apart(experts="fp8-block"))
    after = bitnet.apply(case).model.precision
    assert after.experts is None
