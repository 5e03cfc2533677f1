"""Simulated ECGs as a corpus: see `data.synthetic`."""

from data.corpora import register
from data.synthetic import SyntheticCohort

register(SyntheticCohort)
