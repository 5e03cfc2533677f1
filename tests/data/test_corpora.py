"""The registry of corpora: what is found by name, what an installed package adds, and what is refused."""

import sys
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest

from data.corpora import corpus_named, load_corpus, registered
from data.corpora.csn import Csn
from data.corpora.folder import CorpusFolder
from data.corpus import Corpus
from data.support import plugins
from data.synthetic import SyntheticCohort


class Ours(CorpusFolder):
    """A corpus of one record without published folds, labels or reports."""

    name, title, rates = "ours", "Our corpus", (250, 500)

    def __init__(self, root, rate=250):
        super().__init__(root, rate)
        self.records, self.patient_of = ("a",), {"a": "p"}


@pytest.fixture
def installed(monkeypatch):
    """A package that provides `ours`; gives the names it provides, to be changed."""
    module = ModuleType("our_package")
    module.Ours = Ours
    monkeypatch.setitem(sys.modules, "our_package", module)
    names = ["ours"]
    entry = {"value": "our_package:Ours", "group": "ecg_elm.corpora"}
    monkeypatch.setattr(plugins, "providers", lambda group: {name: [EntryPoint(name, **entry)] for name in names})
    return names


def test_each_has_the_name_by_which_it_is_found():
    corpora = registered()
    assert list(corpora) == ["cpsc2018", "csn", "mimic_iv_ecg", "ptbxl", "synthetic"]
    for name, corpus in corpora.items():
        assert corpus_named(name) is corpus and Corpus in corpus.__mro__
        assert corpus.name.replace("-", "_") == name and corpus.title
    assert corpora["csn"] is Csn
    assert len(load_corpus("synthetic", patients=3)) == 6


def test_an_installed_package_adds_one_with_what_it_knows(installed, tmp_path):
    corpus = load_corpus("ours", root=tmp_path)
    assert isinstance(corpus, Ours) and len(corpus) == 1 and corpus.key == f"ours {tmp_path} 250 Hz"
    assert corpus.traits("a") == {"corpus": "our corpus"} and not corpus.fold_of and not corpus.train_folds
    assert corpus.reports(["a"]) == {} and corpus.statements("a") is None
    with pytest.raises(ValueError, match="Our corpus has no labels 'rhythm'"):
        corpus.labels("rhythm")
    with pytest.raises(ValueError, match="Our corpus is published at 250 and 500 Hz, not at 100"):
        load_corpus("ours", root=tmp_path, rate=100)


def test_wrong_names_and_settings_are_refused(installed):
    with pytest.raises(ValueError, match="unknown corpus 'theirs': one of cpsc2018, .*, synthetic, ours"):
        corpus_named("theirs")
    with pytest.raises(ValueError, match="settings of the corpus 'synthetic': .*seeds"):
        load_corpus("synthetic", seeds=1)
    installed.append("csn")
    with pytest.raises(ValueError, match="corpus 'csn' is provided by ecg-elm and by a package without a name"):
        corpus_named("csn")


def test_a_cohort_is_a_corpus_with_english_reports():
    cohort: Corpus = SyntheticCohort(3)
    assert cohort.reports(cohort.records, "de") == {}
    assert cohort.reports(cohort.records).keys() == set(cohort.records)
