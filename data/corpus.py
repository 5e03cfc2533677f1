"""`Corpus`: recordings together with what is known of them. `data.corpora` holds those of this project, by name."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, Protocol

from data.ecg import Ecg

Traits = dict[str, str | float]  # what donors are matched on, where it is known: "corpus", "sex", "age" (years)


class Corpus(Protocol):
    """Recordings by id (an `EcgSource`), and whose they are; the rest may be missing, as the defaults say."""

    name: ClassVar[str]  # what its questions' folders and caches call it; settings write `_` for `-`
    title: ClassVar[str]  # what texts call it
    rates: ClassVar[tuple[int, ...]] = ()  # published, Hz; the first is read unless another is asked for
    train_folds: ClassVar[tuple[int, ...]] = ()  # recommended for training; none where no folds are published
    languages: ClassVar[tuple[str, ...]] = ()  # of its reports, `"en"` or `"de"`
    records: Collection[str]  # ids of its recordings
    patient_of: Mapping[str, str]
    fold_of: Mapping[str, int] = MappingProxyType({})  # in the published split

    @property
    def key(self) -> str:
        """A name for these recordings, for caches of what is made of them."""

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, record_id: str) -> Ecg:
        """The recording of that id; `KeyError` when there is none."""

    def traits(self, record_id: str) -> Traits:
        """What donors of a recording are matched on."""
        return {"corpus": self.title.lower()}

    def labels(self, kind: str) -> Mapping[str, Sequence[str] | None]:
        """Labels of one kind of every record, None where nothing is known.

        Raises:
            ValueError: The corpus has no such labels.
        """
        raise ValueError(f"{self.title} has no labels {kind!r}")

    def reports(self, records: Iterable[str], language: str = "en", *, voltage: bool = True) -> dict[str, str]:
        """Reports in one language, of those of `records` that have one.

        Without `voltage` they leave out what is said of it, which only true millivolts can show.
        """
        return {}

    def statements(self, record_id: str, *, voltage: bool = True) -> str | None:
        """What the labels of a record say, in English sentences; None where nothing is known."""
        return None
