"""How close a text, such as a report, comes to a reference: BLEU, ROUGE, token F1, and on request METEOR and BERTScore.

    pip install "ecg-elm[text]"        # BLEU, ROUGE
    pip install "ecg-elm[text-all]"    # METEOR, BERTScore too

They measure shared wording. "ST elevation" and "no ST elevation" share most of it, so none of these numbers says that a
finding is right; that is what closed questions and `eval.scoring.answers` are for.

All scores lie between 0 and 1 (BLEU is sacrebleu's divided by 100), but for BERTScore, which can fall below 0. An empty
prediction scores 0 and is never left out: leaving it out would flatter a model that says nothing.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eval.scoring.answers import is_empty, normalise

METRICS = ("bleu", "rouge", "f1", "meteor", "bertscore")

_EDGES = ".,;:!?()[]{}\"'*"  # not the sign of "-30 degrees"


class TextScore(NamedTuple):
    """One metric."""

    value: float  # score of the whole set
    each: NDArray[np.float64] | None  # of every prediction `[n]`, whose mean `value` is; None for corpus BLEU
    settings: str  # words to state beside the number, so that it can be repeated


Metric = Callable[[Sequence[str], Sequence[str]], dict[str, TextScore]]


def report_scores(
    predictions: Sequence[str],
    references: Sequence[str],
    which: Sequence[str] = ("bleu", "rouge", "f1"),
    *,
    bert_model: str = "roberta-large",
    bert_layers: int | None = None,
) -> dict[str, TextScore]:
    """Score texts against one reference each.

    - `bleu` gives `bleu` and `sentence_bleu`: Papineni et al., ACL 2002, by sacrebleu with its default settings; the
      second is the mean of every text's own, with effective order (n-grams longer than the text do not count).
    - `rouge` gives `rouge1`, `rouge2` and `rougeL`: Lin, ACL 2004, F-measure, by rouge-score, unstemmed. Its words
      are runs of a-z and 0-9.
    - `f1` gives `f1`: `token_f1`.
    - `meteor` gives `meteor`: Lavie and Agarwal, WMT 2007, by nltk, over the words of `token_f1`, with WordNet and a
      Porter stemmer. A text that equals its reference scores less than 1, the shorter the less.
    - `bertscore` gives `bertscore`: Zhang et al., ICLR 2020, F, by bert-score, neither idf-weighted nor rescaled.

    `which` are names of `METRICS`. BERTScore compares embeddings of `bert_model`, a hub name or folder, at the layer
    `bert_layers`, which is needed for a model that bert-score does not know by name.

    Raises:
        ValueError: Nothing to score, different numbers of texts, an empty reference, an unknown metric, or no
            `bert_layers` for a model that needs it.
        ImportError: The package of a metric is not installed; says which extra to install.
        LookupError: METEOR without WordNet; says what to run.
    """
    if unknown := [name for name in which if name not in METRICS]:
        raise ValueError(f"unknown metric {unknown[0]!r}: expected some of {', '.join(METRICS)}")
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions but {len(references)} references")
    if not len(predictions):
        raise ValueError("there are no predictions to score")
    if empty := [i for i, reference in enumerate(references) if is_empty(reference)]:
        raise ValueError(f"reference {empty[0]} is empty: there is nothing to compare its prediction with")
    # A lone period would match the reference's for BLEU.
    predictions = ["" if is_empty(prediction) else prediction for prediction in predictions]
    scores: dict[str, TextScore] = {}
    metrics: dict[str, Metric] = {"bleu": _bleu, "rouge": _rouge, "f1": _f1, "meteor": _meteor}
    metrics["bertscore"] = partial(_bertscore, model=bert_model, layers=bert_layers)
    for name in which:
        scores |= metrics[name](predictions, references)
    return scores


def _f1(predictions: Sequence[str], references: Sequence[str]) -> dict[str, TextScore]:
    each = [token_f1(*pair) for pair in zip(predictions, references)]
    return {"f1": _mean(each, "token F1, lower case, punctuation at the edges of words removed")}


def installed() -> list[str]:
    """Names of the metrics among BLEU, ROUGE and token F1 whose packages are installed."""
    packages = {"bleu": "sacrebleu", "rouge": "rouge_score"}
    return [name for name in METRICS[:3] if name not in packages or find_spec(packages[name]) is not None]


def token_f1(prediction: str, reference: str) -> float:
    """F-measure of the words two texts share, each as often as both have it (SQuAD; Rajpurkar et al., EMNLP 2016).

    Words are those of the normalised text without punctuation at their edges. Unlike SQuAD's, articles count, and
    punctuation within words does: "st/t", "0.2" and "-30" stay what they are. 0 where either text has no word.
    """
    written, expected = Counter(_tokens(prediction)), Counter(_tokens(reference))
    shared = (written & expected).total()
    return 2 * shared / (written.total() + expected.total()) if shared else 0.0


def _tokens(text: str) -> list[str]:
    words = (word.strip(_EDGES) for word in normalise(text).split())
    return [word for word in words if any(character.isalnum() for character in word)]


def _bleu(predictions: Sequence[str], references: Sequence[str]) -> dict[str, TextScore]:
    metrics = _needed("sacrebleu.metrics", "BLEU", "text")
    corpus, sentence = metrics.BLEU(), metrics.BLEU(effective_order=True)
    value = corpus.corpus_score(list(predictions), [list(references)]).score
    each = [sentence.sentence_score(text, [reference]).score for text, reference in zip(predictions, references)]
    return {
        "bleu": TextScore(min(value / 100, 1.0), None, str(corpus.get_signature())),
        "sentence_bleu": _mean(np.minimum(np.divide(each, 100), 1.0), str(sentence.get_signature())),
    }


def _rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, TextScore]:
    names = ["rouge1", "rouge2", "rougeL"]
    scorer = _needed("rouge_score.rouge_scorer", "ROUGE", "text").RougeScorer(names, use_stemmer=False)
    settings = f"rouge-score {version('rouge-score')}, F, no stemmer"
    scored = [scorer.score(reference, text) for text, reference in zip(predictions, references)]
    return {name: _mean([score[name].fmeasure for score in scored], settings) for name in names}


def _meteor(predictions: Sequence[str], references: Sequence[str]) -> dict[str, TextScore]:
    score = _needed("nltk.translate.meteor_score", "METEOR", "text-all").single_meteor_score
    wordnet = import_module("nltk.corpus").wordnet
    try:
        wordnet.ensure_loaded()
    except LookupError as error:
        what = "METEOR needs WordNet, which is downloaded once (about 10 MB)"
        raise LookupError(f"{what}: python -m nltk.downloader wordnet") from error
    pairs = [(_tokens(reference), _tokens(text)) for text, reference in zip(predictions, references)]
    each = [score(*pair, wordnet=wordnet) for pair in pairs]
    return {"meteor": _mean(each, f"METEOR of nltk {version('nltk')}, alpha 0.9, beta 3, gamma 0.5")}


def _bertscore(
    predictions: Sequence[str], references: Sequence[str], model: str, layers: int | None
) -> dict[str, TextScore]:
    score = _needed("bert_score", "BERTScore", "text-all").score
    if layers is None and model not in import_module("bert_score.utils").model2layers:
        raise ValueError(f"bert-score knows no layer to compare for {model}: pass bert_layers")
    each = np.zeros(len(predictions))
    words = [i for i, text in enumerate(predictions) if text]  # bert-score fails at an empty text
    settings = f"{model}: nothing to embed"
    if words:
        texts, others = ([some[i] for i in words] for some in (predictions, references))
        (_, _, f), settings = score(texts, others, model_type=model, num_layers=layers, return_hash=True)
        each[words] = np.asarray(f)
    return {"bertscore": _mean(each, settings)}


def _mean(each: Sequence[float] | NDArray[np.float64], settings: str) -> TextScore:
    values = np.asarray(each, dtype=np.float64)
    return TextScore(float(values.mean()), values, settings)


def _needed(module: str, metric: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f'{metric} needs a package that is not installed: pip install "ecg-elm[{extra}]"') from error
