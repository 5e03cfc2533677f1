"""Are an ECG's tokens words that a language model can tell apart? Measures the rows that stand for them.

    python -m eval.vocabulary
    python -m eval.vocabulary --model meta-llama/Llama-3.2-1B-Instruct --tokenizer ecg_byte_tokenizer_10000.pkl
    python -m eval.vocabulary --model out/ecg-byte

The rows of ECG-Byte's tokens are compared as three kinds begin or end: as upstream makes them
(`resize_token_embeddings`, which draws copies of the mean row), as they begin here
(`elm.model.vocabulary.content_rows`) and, of a model that was trained here, as they were learned. The words beside them
say what is usual.

Cosines are of 20,000 random pairs of rows. Taken from the mean row they say nothing of how far off it the rows are:
`off mean` does, in units of the words' own distance. Then the language model reads the tokens of a recording between
random words, and the recording is exchanged for another patient's with as many tokens: by how much do the logits of the
next word move, in parts of their length? Random words in that place, exchanged for as many others, are the measure.

Without --model it is a small Llama with random weights, without --tokenizer tokens are learned from the simulated ECGs
that are exchanged. A model's own tokenizer, where it was trained here, need not be named.
"""

from collections.abc import Sequence

from data.support.commands import parse
from data.support.status import command
from eval.probing.settings import VocabularySettings


@command()
def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    settings = parse(VocabularySettings, "eval.vocabulary", __doc__, argv)

    from eval.probing.vocabulary import run

    print("\n".join(run(settings)))


if __name__ == "__main__":
    main()
