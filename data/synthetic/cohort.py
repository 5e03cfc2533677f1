"""A cohort of simulated 12-lead ECGs with planted findings: the embedded default and the positive control.

Onsets and offsets of all waves are exact (`data.synthetic.waves`): heart rate, PR interval, QRS duration, frontal axis
and ST level can be measured back from the waveform. What is planted, and which findings exclude each other, is in
`data.synthetic.parameters`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from data.corpus import Corpus
from data.ecg import LEADS, Ecg
from data.support.cache import written_once
from data.synthetic import parameters, waves
from data.synthetic.parameters import VALUES, Array, Parameters

VERSION = 1  # of parameters and waves too, in cache keys: tests/test_versions.py says when to raise it
_CHUNK = 128  # recordings simulated at once


class SyntheticCohort(Corpus):
    """Simulated patients with `records_per_patient` recordings each.

    A patient keeps anatomy (lead positions, shape and size of the waves) over all recordings; findings are drawn for
    each recording. Everything follows from `seed`. The rate `fs` (Hz) is that of `cohort[record_id]`.

    In the folder `cache` all recordings are kept as one memory-mapped array, written at first use. Without it each
    recording is rendered when asked for.
    """

    name = "synthetic"
    title = "simulated ECGs"
    languages = ("en",)

    def __init__(
        self,
        patients: int = 2000,
        *,
        records_per_patient: int = 2,
        seed: int = 0,
        fs: float = 100,
        seconds: float = 10,
        cache: Path | str | None = None,
    ) -> None:
        self.seed, self.fs, self.seconds = seed, float(fs), float(seconds)
        self.records_per_patient = visits = records_per_patient
        # Ids are `s<patient>-<visit>`.
        self.records = tuple(f"s{i // visits:05d}-{i % visits + 1}" for i in range(patients * visits))
        self.patient_of = {record: record.partition("-")[0] for record in self.records}
        self._index = {record: i for i, record in enumerate(self.records)}
        # One stream per patient: a cohort of fewer patients is a part of the larger one.
        shape = (parameters.NUMBERS, visits)
        self.parameters = parameters.draw_parameters(
            np.concatenate([np.random.default_rng([seed, 0, i]).random(shape) for i in range(patients)], axis=1)
        )
        self.categories = parameters.categories(self.parameters)  # of each attribute, index into its tuple of values
        self._present = parameters.findings(self.parameters)
        self._signals: Array | None = None
        self._cache = Path(cache) if cache is not None else None

    def __getitem__(self, record_id: str) -> Ecg:
        """The recording at the cohort's sampling rate; `KeyError` when there is none of that id."""
        if self._cache is None:
            return self.render(record_id)
        i = self.index(record_id)
        return self._ecg(i, self.signals()[i], self.fs)

    def index(self, record_id: str) -> int:
        """Position of a record in `parameters`; `KeyError` when there is none of that id."""
        if record_id not in self._index:
            raise KeyError(f"no record {record_id!r} in a cohort of {self.records[0]} to {self.records[-1]}")
        return self._index[record_id]

    def present(self, finding: str) -> Array:
        """Bool `[records]`: where the finding is planted."""
        return self._present[finding][0]

    def askable(self, finding: str) -> Array:
        """Bool `[records]`: where the finding is not excluded by another one."""
        return self._present[finding][1]

    def report(self, record_id: str, rng: np.random.Generator, *, voltage: bool = True) -> str:
        """A report in a cardiologist's words, with or without its sentence about voltage; `rng` draws the phrasings."""
        i = self.index(record_id)
        values = {name: int(index[i]) for name, index in self.categories.items()}
        sentences = parameters.report_sentences(values, lambda finding: bool(self.present(finding)[i]), rng)
        return ". ".join(sentence for sentence in sentences if voltage or sentence not in VALUES["voltage"]) + "."

    def reports(self, records: Iterable[str], language: str = "en", *, voltage: bool = True) -> dict[str, str]:
        """English reports, whose wording follows from the cohort's seed and the record."""
        return {
            record: self.report(record, np.random.default_rng([self.seed, 7, self.index(record)]), voltage=voltage)
            for record in records
            if language == "en"
        }

    def render(self, record_id: str, fs: float | None = None, **moved: float) -> Ecg:
        """The recording, at another sampling rate or with parameters moved; all else stays as it is.

        Noise is drawn anew for each sampling rate `fs` (Hz, by default the cohort's), of equal power density. `moved`
        are new values of fields of `Parameters`, for example `heart_rate=120` or `st_mv=0.3` (anterior unless `st_site`
        says otherwise). A new `gain` scales the whole recording, so it scales `st_mv` too.

        Raises:
            KeyError: There is no such record.
            ValueError: A name is not a parameter, or the heart rate is too fast for the length of a recording.
        """
        i = self.index(record_id)
        p = self.parameters.take([i])
        names = [f.name for f in fields(Parameters)]
        if unknown := moved.keys() - set(names):
            raise ValueError(f"unknown parameter {sorted(unknown)}: one of {names}")
        if "gain" in moved and "st_mv" not in moved:
            moved["st_mv"] = float(p.st_mv[0] * moved["gain"] / p.gain[0])
        if moved.get("st_mv") and "st_site" not in moved and p.st_site[0] == 0:
            moved["st_site"] = 1
        p = replace(p, **{name: np.array([value], getattr(p, name).dtype) for name, value in moved.items()})
        rate = float(fs or self.fs)
        return self._ecg(i, self._simulate([i], p, rate)[0], rate, p)

    @property
    def key(self) -> str:
        """A name for these recordings, for caches of what is made of them; another one for another `VERSION`."""
        size = f"{len(self)}x{self.records_per_patient}"
        return f"cohort-{size}-seed{self.seed}-{self.fs:g}Hz-{self.seconds:g}s-v{VERSION}"

    def signals(self) -> Array:
        """All recordings, float32 `[records, 12, samples]` in mV at the cohort's rate."""
        if self._signals is None and self._cache is not None:
            path = written_once(self._cache / f"{self.key}.npy", lambda file: np.save(file, self._simulate_all()))
            self._signals = np.load(path, mmap_mode="r")
        elif self._signals is None:
            self._signals = self._simulate_all()
        return self._signals

    def _simulate_all(self) -> Array:
        out = np.empty((len(self), len(LEADS), round(self.fs * self.seconds)), np.float32)
        for start in range(0, len(self), _CHUNK):
            index = range(start, min(start + _CHUNK, len(self)))
            out[index.start : index.stop] = self._simulate(index, self.parameters.take(list(index)), self.fs)
        return out

    def _ecg(self, i: int, signal: Array, fs: float, p: Parameters | None = None) -> Ecg:
        p = p or self.parameters.take([i])
        meta = {"simulated": True, **{f.name: getattr(p, f.name)[0].item() for f in fields(p)}}
        return Ecg(signal, fs, LEADS, self.records[i], self.patient_of[self.records[i]], meta)

    def _simulate(self, index: Sequence[int], p: Parameters, fs: float) -> Array:
        """Waveforms float32 `[n, 12, samples]` of the recordings `index` with parameters `p`."""
        draws = [np.random.default_rng([self.seed, 1, i]) for i in index]
        patients = [np.random.default_rng([self.seed, 2, i // self.records_per_patient]) for i in index]
        anatomy = waves.draw_anatomy(patients)
        t = np.arange(round(fs * self.seconds)) / fs
        beats = waves.draw_beats(p, draws)
        if (beats.onset[:, -1] <= t[-1]).any():
            rate = p.heart_rate.max()
            raise ValueError(f"{self.seconds:g} s at {rate:g} beats per minute exceed {waves.MAX_BEATS} beats")
        courses, dipoles = waves.draw_waves(p, anatomy, t, beats, draws)
        to_leads = (dipoles @ waves.LEAD_FIELD.T) * anatomy["lead_gain"][:, None]  # [n, waves, 12]
        leads = np.matmul(to_leads.transpose(0, 2, 1).astype(np.float32), courses)
        leads += np.matmul(waves.ELECTRODES.astype(np.float32), waves.draw_noise(p, t, fs, draws))
        return np.asarray(leads * p.gain[:, None, None].astype(np.float32))
