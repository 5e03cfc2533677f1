import math
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.scoring.text import METRICS, report_scores, token_f1

WORDS = ["sinus", "rhythm", "st", "elevation", "no", "v1", "axis"]
SENTENCE = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join)
PAIRS = st.lists(st.tuples(SENTENCE, SENTENCE), min_size=1, max_size=5)
quick = settings(max_examples=40, deadline=None)

PREDICTIONS = ["sinus rhythm. normal axis.", "atrial fibrillation with inferior ST elevation"]
REFERENCES = ["sinus rhythm. left axis deviation.", "atrial fibrillation, inferior ST elevation"]


def f(shared: float, said: int, meant: int) -> float:
    return 2 * shared / (said + meant)


def ngrams(text: str, n: int) -> Counter[tuple[str, ...]]:
    words = text.split()
    return Counter(zip(*(words[i:] for i in range(n))))


def longest_common(a: list[str], b: list[str]) -> int:
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return 1 + longest_common(a[:-1], b[:-1])
    return max(longest_common(a[:-1], b), longest_common(a, b[:-1]))


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("Sinus rhythm.", "sinus rhythm", 1.0),
        ("sinus rhythm. Normal axis.", "sinus rhythm, (normal) axis", 1.0),  # punctuation at edges
        ("rhythm rhythm sinus", "sinus rhythm", 0.8),  # 2 shared of 3 and 2
        ("no ST elevation", "ST elevation", 0.8),  # shares words, says the opposite
        ("the axis", "axis", 2 / 3),  # articles count
        ("axis 30 degrees", "axis -30 degrees", 2 / 3),  # a sign counts
        ("ST/T change", "st t change", 0.4),  # punctuation within words counts
        ("- axis", "axis", 1.0),  # a bullet is no word
        ("", "axis", 0.0),
        ("...", "axis", 0.0),
    ],
)
def test_token_f1_by_hand(prediction, reference, expected):
    assert token_f1(prediction, reference) == pytest.approx(expected)
    assert token_f1(reference, prediction) == pytest.approx(expected)


@quick
@given(SENTENCE, SENTENCE, st.randoms())
def test_token_f1_is_the_overlap_of_two_bags_of_words(first, second, random):
    overlap = sum(min(first.split().count(word), second.split().count(word)) for word in WORDS)
    assert token_f1(first, second) == pytest.approx(f(overlap, len(first.split()), len(second.split())))
    shuffled = first.upper().split()
    random.shuffle(shuffled)
    assert token_f1(" ".join(shuffled), second) == token_f1(first, second)


@quick
@given(PAIRS)
def test_rouge_is_what_its_definition_says(pairs):
    scores = report_scores(*zip(*pairs), which=["rouge"])
    for n in (1, 2):
        shared = [(ngrams(said, n) & ngrams(meant, n)).total() for said, meant in pairs]
        totals = [(ngrams(said, n).total(), ngrams(meant, n).total()) for said, meant in pairs]
        expected = [f(both, *total) if both else 0 for both, total in zip(shared, totals)]
        np.testing.assert_allclose(scores[f"rouge{n}"].each, expected)
        assert scores[f"rouge{n}"].value == pytest.approx(np.mean(expected))
    common = [longest_common(said.split(), meant.split()) for said, meant in pairs]
    expected = [f(length, len(said.split()), len(meant.split())) for length, (said, meant) in zip(common, pairs)]
    np.testing.assert_allclose(scores["rougeL"].each, expected)


def test_rouge_does_not_stem():
    score = report_scores(["ventricular complexes"], ["ventricular complex"], which=["rouge"])["rouge1"]
    assert score.value == 0.5
    assert "no stemmer" in score.settings


@quick
@given(PAIRS)
def test_bleu_is_what_its_definition_says(pairs):
    shared, total = np.zeros(4), np.zeros(4)
    for said, meant in pairs:
        for n in range(1, 5):
            shared[n - 1] += (ngrams(said, n) & ngrams(meant, n)).total()
            total[n - 1] += ngrams(said, n).total()
    lengths = [sum(len(text.split()) for text in texts) for texts in zip(*pairs)]
    if total.all() and shared[0]:  # the smoothing of zero counts is exponential
        halvings = np.cumsum(shared == 0)
        precisions = np.where(shared > 0, shared, 0.5**halvings) / total
        expected = math.exp(np.log(precisions).mean() + min(0, 1 - lengths[1] / lengths[0]))
    else:
        expected = 0.0
    scores = report_scores(*zip(*pairs), which=["bleu"])
    assert scores["bleu"].value == pytest.approx(expected)
    assert scores["bleu"].each is None
    assert len(scores["sentence_bleu"].each) == len(pairs)


def test_bleu_by_hand_and_its_signature():
    prediction, reference = ["normal axis and left bundle"], ["normal axis and left anterior block"]
    scores = report_scores(prediction, reference, which=["bleu"])
    # 4 of 5 words, 3 of 4 pairs, 2 of 3 triples, 1 of 2 quadruples; one word shorter than the reference
    assert scores["bleu"].value == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25 * math.exp(1 - 6 / 5))
    assert scores["sentence_bleu"].value == pytest.approx(scores["bleu"].value)
    assert scores["bleu"].settings.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert "eff:yes" in scores["sentence_bleu"].settings


def test_equal_texts_score_one_and_every_mean_is_of_what_can_be_resampled():
    same = report_scores(REFERENCES, REFERENCES)
    assert list(same) == ["bleu", "sentence_bleu", "rouge1", "rouge2", "rougeL", "f1"]
    assert all(score.value == 1 for score in same.values())
    for name, score in report_scores(PREDICTIONS, REFERENCES).items():
        assert 0 < score.value < 1, name
        assert score.each is None or score.value == pytest.approx(score.each.mean())


class NoSynonyms:
    """WordNet is a download; without synonyms METEOR matches equal words and equal stems."""

    def ensure_loaded(self):
        pass

    def synsets(self, word):
        return []


@pytest.fixture
def wordnet(monkeypatch):
    import nltk.corpus

    monkeypatch.setattr(nltk.corpus, "wordnet", NoSynonyms())


@pytest.fixture
def bert_score(monkeypatch):
    """bert-score downloads a model: a stand-in with its interface, that tells what it was asked."""
    asked = SimpleNamespace(calls=[])

    def score(candidates, references, **settings):
        assert all(candidate.strip() for candidate in candidates), "bert-score fails at an empty text"
        asked.calls.append((candidates, references, settings))
        f = np.array([len(said) / len(meant) for said, meant in zip(candidates, references)])
        return (f - 1, f + 1, f), "the hash"

    monkeypatch.setitem(sys.modules, "bert_score", SimpleNamespace(score=score))
    known = SimpleNamespace(model2layers={"roberta-large": 17})
    monkeypatch.setitem(sys.modules, "bert_score.utils", known)
    return asked


def test_meteor_by_hand(wordnet):
    # Three of three and four words match, "complexes" by its stem, in two runs.
    score = report_scores(["complexes, Sinus rhythm."], ["Sinus rhythm with complex"], which=["meteor"])["meteor"]
    precision, recall = 3 / 3, 3 / 4
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    assert score.value == pytest.approx(mean * (1 - 0.5 * (2 / 3) ** 3))
    assert "nltk" in score.settings


def test_bertscore_gives_each_texts_f(bert_score):
    score = report_scores(["ab", "", "abc"], ["abcd", "ab", "abc"], ["bertscore"])["bertscore"]
    np.testing.assert_allclose(score.each, [0.5, 0, 1])
    assert (score.value, score.settings) == (0.5, "the hash")
    (_, references, options), = bert_score.calls  # fmt: skip
    assert references == ["abcd", "abc"]
    assert options == {"model_type": "roberta-large", "num_layers": None, "return_hash": True}


def test_bertscore_needs_a_layer_for_a_model_of_ones_own(bert_score):
    with pytest.raises(ValueError, match="no layer to compare for /models/own: pass bert_layers"):
        report_scores(["a"], ["a"], ["bertscore"], bert_model="/models/own")
    report_scores(["a"], ["a"], ["bertscore"], bert_model="/models/own", bert_layers=3)
    assert bert_score.calls[0][2]["num_layers"] == 3


@pytest.mark.parametrize("nothing", ["", " \n", "."])
def test_an_empty_prediction_scores_zero_and_is_not_left_out(nothing, wordnet, bert_score):
    both = report_scores([PREDICTIONS[0], nothing], REFERENCES, METRICS)
    alone = report_scores(PREDICTIONS[:1], REFERENCES[:1], METRICS)
    assert list(both) == [*("bleu", "sentence_bleu", "rouge1", "rouge2", "rougeL", "f1", "meteor", "bertscore")]
    for name, score in both.items():
        if score.each is not None:
            np.testing.assert_allclose(score.each, [alone[name].value, 0], err_msg=name)
    assert both["bleu"].value < alone["bleu"].value  # the brevity penalty
    for name, score in report_scores([nothing] * 2, REFERENCES, METRICS).items():
        assert score.value == 0, name


@pytest.mark.parametrize(
    ("predictions", "references", "which", "message"),
    [
        (["a", "b"], ["a"], ["f1"], "2 predictions but 1 references"),
        ([], [], ["f1"], "no predictions to score"),
        (["a", "b"], ["a", " ."], ["f1"], "reference 1 is empty"),
        (["a"], ["a"], ["f1", "cider"], "unknown metric 'cider': expected some of bleu, rouge, f1, meteor, bertscore"),
    ],
)
def test_refuses_what_cannot_be_scored(predictions, references, which, message):
    with pytest.raises(ValueError, match=message):
        report_scores(predictions, references, which)


@pytest.mark.parametrize(
    ("metric", "module", "message"),
    [
        ("bleu", "sacrebleu.metrics", r'BLEU needs .* pip install "ecg-elm\[text\]"'),
        ("rouge", "rouge_score.rouge_scorer", r'ROUGE needs .* pip install "ecg-elm\[text\]"'),
        ("meteor", "nltk.translate.meteor_score", r'METEOR needs .* pip install "ecg-elm\[text-all\]"'),
        ("bertscore", "bert_score", r'BERTScore needs .* pip install "ecg-elm\[text-all\]"'),
    ],
)
def test_names_the_extra_of_a_package_that_is_absent(monkeypatch, metric, module, message):
    monkeypatch.setitem(sys.modules, module, None)  # Python's way to say that it cannot be imported
    with pytest.raises(ImportError, match=message):
        report_scores(["a"], ["a"], [metric])


def test_meteor_without_wordnet_says_what_to_run(monkeypatch):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(LookupError, match="python -m nltk.downloader wordnet"):
        report_scores(["a"], ["a"], ["meteor"])
