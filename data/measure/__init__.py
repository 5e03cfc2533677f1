"""Measured features of a recording: `measure` one, `measure_many` of a source, `as_text` for a prompt."""

from data.measure.command import main
from data.measure.delineation import FS, VERSION, delineate
from data.measure.values import AMPLITUDES, NOT_MEASURABLE, Measurements, as_text
from data.measure.worker import Worker, measure, measure_many, require_neurokit, version

__all__ = ["AMPLITUDES", "FS", "NOT_MEASURABLE", "VERSION", "Measurements", "Worker", "as_text", "delineate"]
__all__ += ["main", "measure", "measure_many", "require_neurokit", "version"]
