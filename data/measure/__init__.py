"""Measured features of a recording: `measure` one, `measure_many` of a source, `as_text` for a prompt."""

from data.measure.worker import (
    AMPLITUDES,
    FS,
    NOT_MEASURABLE,
    VERSION,
    Measurements,
    Worker,
    as_text,
    delineate,
    measure,
    measure_many,
    require_neurokit,
    serve,
    version,
)

__all__ = [
    "AMPLITUDES",
    "FS",
    "NOT_MEASURABLE",
    "VERSION",
    "Measurements",
    "Worker",
    "as_text",
    "delineate",
    "measure",
    "measure_many",
    "require_neurokit",
    "serve",
    "version",
]
