import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.statistics import cluster_interval, cluster_intervals, paired_interval


def test_equals_the_ordinary_bootstrap_where_every_answer_has_its_own_patient():
    rng = np.random.default_rng(0)
    values = rng.random(300) < 0.7
    low, high = cluster_interval(values, [str(i) for i in range(300)], draws=8000)
    means = values[rng.integers(300, size=(8000, 300))].mean(axis=1)
    assert (low, high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.004)


def answers(rng, patients, items, effect, pairs=False):
    """Right or wrong, with patients who are easier and harder, and whom each answer is about."""
    easy = rng.normal(0, effect, patients)
    about = rng.permuted(np.tile(np.arange(patients), (items, 1)), axis=1)[:, : 2 if pairs else 1]
    values = rng.random(items) < chance(easy[about])
    return values, [[str(p) for p in who] for who in about]


def chance(easy):
    return 1 / (1 + np.exp(-0.5 - easy.sum(axis=1)))


@pytest.mark.parametrize(("pairs", "least", "most"), [(False, 0.90, 0.985), (True, 0.94, 1.0)])
def test_intervals_hold_the_truth_as_often_as_they_say(pairs, least, most):
    rng = np.random.default_rng(1)
    truth = chance(rng.normal(0, 1.0, (1_000_000, 2 if pairs else 1))).mean()  # for patients never seen
    held = []
    for _ in range(150):
        values, clusters = answers(rng, 60, 200, effect=1.0, pairs=pairs)
        low, high = cluster_interval(values, clusters, draws=200)
        held.append(low <= truth <= high)
    assert least <= np.mean(held) <= most


def test_answers_that_go_together_widen_the_interval():
    rng = np.random.default_rng(2)
    patient = np.repeat(np.arange(50), 20)
    values = rng.random(50)[patient] < 0.6  # all of a patient's answers alike
    clustered = cluster_interval(values, [str(p) for p in patient])
    independent = cluster_interval(values, [str(i) for i in range(1000)])
    assert clustered.high - clustered.low > 3 * (independent.high - independent.low)


def test_a_difference_is_narrower_than_its_parts_suggest():
    rng = np.random.default_rng(3)
    patient = rng.integers(0, 40, 800)
    easy = rng.random(40)[patient]
    throw = rng.random(800)
    first, second = throw < easy, throw < easy - 0.1
    clusters = [str(p) for p in patient]
    gap = paired_interval(first, second, clusters)
    one = cluster_interval(first, clusters)
    assert gap.high - gap.low < 0.5 * (one.high - one.low)
    assert gap.low > 0 and gap == cluster_interval(first.astype(float) - second, clusters)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.sets(st.sampled_from("abcdef"), min_size=1, max_size=3)),
        min_size=1,
        max_size=30,
    ),
    st.randoms(),
)
def test_intervals_are_sound_for_any_answers(items, random):
    def interval(items, seed=0):
        return cluster_interval([v for v, _ in items], [tuple(c) for _, c in items], draws=50, seed=seed)

    low, high = interval(items)
    if len({frozenset(c) for _, c in items}) == 1:
        assert np.isnan([low, high]).all()
        return
    assert np.isnan(low) or 0 <= low <= high <= 1
    random.shuffle(items)
    assert interval(items) == pytest.approx((low, high), nan_ok=True)  # the order of answers says nothing


def test_the_same_seed_gives_the_same_interval_and_columns_share_resamples():
    rng = np.random.default_rng(4)
    values, clusters = answers(rng, 30, 200, 1.0)
    assert cluster_interval(values, clusters, seed=5) == cluster_interval(values, clusters, seed=5)
    assert cluster_interval(values, clusters, seed=5) != cluster_interval(values, clusters, seed=6)
    both = cluster_intervals(np.column_stack([values, 1 - values]), clusters, seed=5)
    assert both[0] == cluster_interval(values, clusters, seed=5)
    assert both[1] == pytest.approx((1 - both[0].high, 1 - both[0].low))
    wide = cluster_interval(values, clusters, level=0.99)
    assert wide.low < cluster_interval(values, clusters).low


def test_a_patient_named_twice_is_one_patient():
    values = [1, 0, 1, 1]
    assert cluster_interval(values, ["a", "b", "c", "a"]) == cluster_interval(values, [["a", "a"], ["b"], "c", "a"])


def test_one_patient_says_nothing_about_others():
    assert np.isnan(cluster_interval([1, 0, 1], ["a", "a", "a"])).all()
    assert np.isnan(cluster_interval([1, 0], [("a", "b"), ("b", "a")])).all()


@pytest.mark.parametrize(
    ("values", "clusters", "settings_", "match"),
    [
        ([], [], {}, "no values"),
        ([1, 0], ["a"], {}, "2 values but 1 clusters"),
        ([1, np.nan], ["a", "b"], {}, "value 1 is not finite"),
        ([1, 0], ["a", []], {}, "value 1 belongs to no cluster"),
        ([[1], [0]], ["a", "b"], {}, "one number per answer"),
        ([1, 0], ["a", "b"], {"draws": 0}, "draws"),
        ([1, 0], ["a", "b"], {"level": 95}, "level"),
    ],
)
def test_wrong_arguments_are_named(values, clusters, settings_, match):
    with pytest.raises(ValueError, match=match):
        cluster_interval(values, clusters, **settings_)


def test_ten_thousand_answers_take_two_seconds_at_most():
    rng = np.random.default_rng(5)
    clusters = [str(p) for p in rng.integers(0, 2000, 10_000)]
    start = time.process_time()  # not wall time: the machine is shared
    cluster_interval(rng.random(10_000) < 0.5, clusters)
    assert time.process_time() - start < 2
