import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from eval.statistics import auroc
from eval.statistics.linear import STRENGTHS, fit_probe


def standardised(x):
    """Features as the objective is stated for: each of variance 1, then each recording of length near 1."""
    x = x.astype(float)
    return (x - x.mean(axis=0)) / x.std(axis=0) / np.sqrt(x.shape[1])


def loss(parameters, x, y, strength):
    z = x @ parameters[:-1] + parameters[-1]
    return np.mean(np.logaddexp(0, z) - y * z) + strength / 2 * np.sum(parameters[:-1] ** 2)


def slope(parameters, x, y, strength):
    error = 1 / (1 + np.exp(-x @ parameters[:-1] - parameters[-1])) - y
    return np.append(x.T @ error / len(x) + strength * parameters[:-1], error.mean())


def make(n, width, findings=1, seed=0, noise=1.0):
    """Features of uneven scale and offset, labels that follow the first ones, and a patient for each."""
    rng = np.random.default_rng(seed)
    plain = rng.normal(size=(n, width))
    labels = plain[:, :findings] + noise * rng.normal(size=(n, findings)) > 0.3
    features = plain * rng.lognormal(size=width) + 5 * rng.normal(size=width)
    return features.astype(np.float32), labels.astype(float), [f"p{i}" for i in range(n)]


@pytest.mark.parametrize(("n", "width"), [(80, 5), (60, 60), (50, 400)])
@pytest.mark.parametrize("strength", STRENGTHS[1:5])
def test_nothing_is_better_than_what_is_found(n, width, strength):
    features, labels, patients = make(n, width)
    probe = fit_probe(features, labels, patients, strengths=[strength])
    x, y = standardised(features), labels[:, 0]
    mean, spread = features.astype(float).mean(axis=0), features.astype(float).std(axis=0)
    found = np.append(probe.weights * spread[:, None] * np.sqrt(width), probe.intercepts + mean @ probe.weights)
    assert np.abs(slope(found, x, y, strength)).max() < 1e-5
    assert probe(features)[:, 0] == pytest.approx(x @ found[:-1] + found[-1])
    if width < 10:
        brute = minimize(loss, np.zeros(width + 1), (x, y, strength), "BFGS", options={"gtol": 1e-8})
        assert found == pytest.approx(brute.x, abs=2e-3)


def test_the_weights_are_those_of_scikit_learn():
    features, labels, patients = make(300, 20, findings=3)
    x = standardised(features)
    for strength in STRENGTHS[1:5]:
        scores = fit_probe(features, labels, patients, strengths=[strength])(features)
        for finding in range(3):
            theirs = LogisticRegression(C=1 / (300 * strength), tol=1e-10, max_iter=5000).fit(x, labels[:, finding])
            assert scores[:, finding] == pytest.approx(theirs.decision_function(x), abs=1e-3)


def test_drawn_recordings_do_as_well_as_all_where_they_span_the_features():
    rng = np.random.default_rng(1)
    hidden = rng.normal(size=(300, 10))
    features, patients = hidden @ rng.normal(size=(10, 400)), [str(i) for i in range(300)]
    labels = (hidden[:, :1] + 0.3 * rng.normal(size=(300, 1)) > 0).astype(float)
    whole, drawn = (fit_probe(features, labels, patients, max_width=width) for width in (2048, 64))
    assert whole.strengths == drawn.strengths
    assert whole(features) == pytest.approx(drawn(features), abs=1e-3)


def test_findings_fitted_together_are_those_fitted_alone():
    features, labels, patients = make(120, 30, findings=4)
    labels[::3, 1] = labels[1::4, 2] = np.nan
    together = fit_probe(features, labels, patients)
    for finding in range(4):
        only = np.full_like(labels, np.nan)[:, :1]
        only[:, 0] = labels[:, finding]
        alone = fit_probe(features, only, patients)
        assert together.strengths[finding] == alone.strengths[0]
        assert together(features)[:, finding] == pytest.approx(alone(features)[:, 0], abs=1e-2)


def test_the_order_of_recordings_says_nothing():
    features, labels, patients = make(100, 150, findings=2)
    mixed = np.random.default_rng(2).permutation(100)
    first = fit_probe(features, labels, patients)
    second = fit_probe(features[mixed], labels[mixed], [patients[i] for i in mixed])
    assert (first.strengths == second.strengths).all()
    assert first(features) == pytest.approx(second(features), abs=1e-2)


def test_a_planted_direction_is_found_and_nothing_is_found_in_noise():
    features, labels, patients = make(400, 300, noise=0.3)
    labels = np.hstack([labels, np.random.default_rng(3).random((400, 20)) < 0.5])
    train, test = slice(0, 250), slice(250, 400)
    probe = fit_probe(features[train], labels[train], patients[train])
    scores = probe(features[test])
    told, *noise = (auroc(column, y) for column, y in zip(scores.T, labels[test].T))
    assert told > 0.75 and abs(np.mean(noise) - 0.5) < 0.03
    certain, *guesses = scores.std(axis=0)
    assert np.median(guesses) < 0.3 * certain


def test_a_patient_is_never_both_learned_from_and_left_out():
    # Each patient has a signature and one label: who has seen the patient knows the label, and nobody else does.
    rng = np.random.default_rng(4)
    features = np.repeat(rng.normal(size=(40, 60)), 8, axis=0) + 0.1 * rng.normal(size=(320, 60))
    labels = np.repeat(np.arange(40) % 2, 8)[:, None]
    parted = fit_probe(features, labels, [str(i // 8) for i in range(320)])
    leaking = fit_probe(features, labels, [str(i) for i in range(320)])
    assert parted.strengths[0] == max(STRENGTHS) and leaking.strengths[0] == min(STRENGTHS)


def test_what_does_not_vary_is_no_feature():
    features, labels, patients = make(100, 20)
    jitter = 1e3 * (1 + 1e-7 * np.random.default_rng(5).normal(size=(100, 3)))  # the last digit of single precision
    wider = np.hstack([features, jitter]).astype(np.float32)
    probe = fit_probe(wider, labels, patients)
    assert not probe.weights[20:].any()
    assert probe(wider) == pytest.approx(fit_probe(features, labels, patients)(features))
    nothing = fit_probe(wider[:, 20:], labels, patients)
    assert len(np.unique(nothing(wider[:, 20:]))) == 1


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"features": np.zeros((29, 3))}, r"must match: \(29, 3\), \(30, 2\), 30"),
        ({"patients": ["a"]}, r"must match"),
        ({"strengths": [1.0, 0.0]}, r"strengths must be positive numbers, got \[1.0, 0.0\]"),
        ({"folds": 1}, "folds must be at least 2, got 1"),
        ({"infinite": 7}, r"features of row 7 \(patient p7\) are not finite"),
        ({"label": 2.0}, "finding 1: labels must be 0, 1 or NaN, got 2.0"),
        ({"labels": np.ones((30, 2))}, r"finding 0: all known labels are \[1.\]: leave it out"),
        ({"patients": ["a", "b"] * 15, "labels": np.tile([[0], [1]], (15, 2))}, "finding 0: .* give more patients"),
    ],
)
def test_wrong_arguments_are_named(change, match):
    features, labels, patients = make(30, 3, findings=2)
    given = {"features": features, "labels": labels, "patients": patients}
    if "infinite" in change:
        features[change.pop("infinite"), 1] = np.inf
    if "label" in change:
        labels[3, 1] = change.pop("label")
    with pytest.raises(ValueError, match=match):
        fit_probe(**{**given, **change})


def test_features_of_another_width_are_refused():
    probe = fit_probe(*make(30, 3))
    with pytest.raises(ValueError, match=r"fitted to features \[N, 3\], got \(30, 4\)"):
        probe(np.zeros((30, 4)))


def test_a_validation_split_chooses_what_serves_its_patients():
    features, labels, patients = make(260, 60, findings=3)
    labels[:, 2] = np.arange(260) % 2  # nothing to learn
    train, held = slice(0, 130), slice(130, 260)
    both = features[train], labels[train], patients[train]
    chosen = fit_probe(*both, validation=(features[held], labels[held]))
    losses = []
    for strength in sorted(STRENGTHS, reverse=True):
        alone = fit_probe(*both, strengths=[strength], validation=(features[held], labels[held]))
        z, y = alone(features[held]), labels[held]
        losses.append(np.mean(np.logaddexp(0, z) - y * z, axis=0))
    assert (chosen.strengths == np.array(sorted(STRENGTHS, reverse=True))[np.argmin(losses, axis=0)]).all()
    assert chosen.strengths[2] == max(STRENGTHS) > chosen.strengths[0]
    best = fit_probe(*both, strengths=[chosen.strengths[0]], validation=(features[held], labels[held]))
    assert chosen(features)[:, 0] == pytest.approx(best(features)[:, 0], abs=1e-2)


def test_a_finding_the_validation_cannot_judge_takes_the_strength_of_the_others():
    features, labels, patients = make(200, 20, findings=3)
    train, held = slice(0, 100), slice(100, 200)
    truth = labels[held].copy()
    truth[:, 1] = 0
    probe = fit_probe(features[train], labels[train], patients[train], validation=(features[held], truth))
    rest = [0, 2]
    alone = fit_probe(features[train], labels[train], patients[train], validation=(features[held], labels[held]))
    assert (probe.strengths[rest] == alone.strengths[rest]).all()
    assert min(probe.strengths[rest]) <= probe.strengths[1] <= max(probe.strengths[rest])


@pytest.mark.parametrize(
    ("held", "truth", "match"),
    [
        (np.zeros((4, 2)), np.zeros((4, 2)), r"validation \(4, 2\), \(4, 2\) does not match \(30, 3\), \(30, 2\)"),
        (np.zeros((4, 3)), np.full((4, 2), np.nan), "features must be finite and labels 0 or 1"),
        (np.zeros((4, 3)), np.zeros((4, 2)), "no finding has labels of both kinds in the validation"),
    ],
)
def test_a_validation_that_cannot_be_used_is_refused(held, truth, match):
    with pytest.raises(ValueError, match=match):
        fit_probe(*make(30, 3, findings=2), validation=(held, truth))
