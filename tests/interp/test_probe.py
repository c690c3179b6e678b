"""Probes beside scikit-learn's own, and their controls on data whose truth is known."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from worthit.errors import InputError
from worthit.interp.probe import fit_probe, probe_layers, split


def data(n: int = 240, d: int = 8, strength: float = 2.0, k: int = 2):
    g = torch.Generator().manual_seed(0)
    z = torch.arange(n) % k
    x = torch.randn(n, d, generator=g)
    x[:, 0] += strength * z
    return x, z


@pytest.mark.parametrize("k", [2, 4])
def test_as_scikit_learn_on_standardised_columns(k: int) -> None:
    x, z = data(k=k)
    x = x * 50 + 3
    probe = fit_probe(x, z, penalty=0.1)
    plain = ((x - x.mean(0)) / x.std(0)).double().numpy()
    theirs = LogisticRegression(C=1 / (0.1 * len(x)), max_iter=1000).fit(plain, z)
    expected = torch.from_numpy(theirs.predict_proba(plain))
    got = probe.probability(x)
    torch.testing.assert_close(got, expected[:, 1] if k == 2 else expected, atol=1e-4, rtol=0)
    assert probe.accuracy(x, z) == pytest.approx(theirs.score(plain, z))


def test_constant_columns_take_no_part() -> None:
    x, z = data()
    x[:, 3] = 7.0
    assert float(fit_probe(x, z).direction[3]) == pytest.approx(0, abs=1e-6)


def test_labels_need_not_count_from_zero() -> None:
    x, z = data()
    probe = fit_probe(x, z * 3 + 4)
    assert probe.labels == (4, 7)
    assert probe.accuracy(x, z * 3 + 4) > 0.7


def test_a_property_that_only_a_later_layer_has() -> None:
    x, z = data(strength=4.0)
    noise = torch.randn(len(z), 8, generator=torch.Generator().manual_seed(1))
    report = probe_layers({"embed": noise, "layers.0.resid_post": x}, z)
    assert report.best == "layers.0.resid_post"
    assert report.of(report.best).accuracy > 0.9
    assert report.of(report.best).low > report.layers[0].accuracy
    assert report.of(report.best).shuffled < 0.7
    assert report.cautions == ()
    assert report.n_fit + report.n_test == len(z)


def test_what_stands_in_the_words_is_said_to() -> None:
    x, z = data(strength=4.0)
    report = probe_layers({"embed": x, "layers.0.resid_post": 2 * x + 0.5 * x.roll(1, 1)}, z)
    if report.best != "embed":
        assert "in the words alone" in report.cautions[0]
    noise = torch.randn(len(z), 8, generator=torch.Generator().manual_seed(1))
    nothing = probe_layers({"embed": noise}, z)
    assert "nothing is shown to be read" in nothing.cautions[0]


def test_a_split_holds_out_some_of_each() -> None:
    z = torch.tensor([0] * 20 + [1] * 4)
    fit, held = split(z, share=0.25, seed=0)
    assert sorted(torch.cat([fit, held]).tolist()) == list(range(24))
    assert z[held].bincount().tolist() == [5, 1]
    with pytest.raises(InputError, match="two rows or more, got 1"):
        split(torch.tensor([0, 0, 1]), share=0.3, seed=0)
    with pytest.raises(InputError, match="two labels or more"):
        fit_probe(torch.ones(3, 2), torch.zeros(3).long())


def test_a_split_by_groups_leaves_no_group_on_both_sides() -> None:
    z = torch.tensor([0, 1] * 10)
    groups = [str(i // 4) for i in range(20)]
    fit, held = split(z, share=0.4, seed=0, groups=groups)
    assert sorted([*fit.tolist(), *held.tolist()]) == list(range(20))
    assert len(held) == 8
    assert {groups[i] for i in fit.tolist()}.isdisjoint(groups[i] for i in held.tolist())
    with pytest.raises(InputError, match="give each group texts of every label"):
        split(z, share=0.4, seed=0, groups=[str(i % 2) for i in range(20)])


def test_what_only_a_group_shares_is_not_read_in_others() -> None:
    # A column for each group that gives its labels away, turned about from group to group.
    generator = torch.Generator().manual_seed(0)
    z = torch.tensor([0, 1] * 40)
    x = torch.zeros(80, 20)
    for i in range(80):
        x[i, i // 4] = 1.0 if z[i] else -1.0
    x += 0.1 * torch.randn(80, 20, generator=generator)
    states = {"embed": x, "late": x}
    known = probe_layers(states, z, seed=1)
    unknown = probe_layers(states, z, seed=1, groups=[str(i // 4) for i in range(80)])
    assert known.of("late").accuracy > 0.9
    assert unknown.of("late").accuracy < 0.75
