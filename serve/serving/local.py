"""A saved model that answers on the chat page in this process, on the GPU if there is one."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event, Lock

import torch
from transformers import PreTrainedModel, StoppingCriteriaList, TextStreamer

from data.ecg import Ecg
from elm import ElmProcessor
from elm.inputs.window import seconds_read
from elm.saved.run import SavedRun
from serve.serving.client import Turns, conversation
from serve.serving.engine import LOOK, Over, Put, TooLong, streamed

ROOM = 8  # part of the model's positions that is kept free for an answer: one in so many


class LocalEngine:
    """A saved model in this process. One question at a time; the others wait, and can be stopped while they do.

    It is in a folder, on the hub, or, with its processor, `loaded` already. Answers are cut at `max_new_tokens`.
    """

    def __init__(
        self, folder: Path | str, max_new_tokens: int = 256, loaded: tuple[PreTrainedModel, ElmProcessor] | None = None
    ) -> None:
        self.max_new_tokens = max_new_tokens
        self.name = str(folder).rstrip("/").rpartition("/")[2] if Path(folder).is_dir() else str(folder)
        self.digest = ""
        if loaded is None:
            saved = SavedRun(folder)
            loaded, self.digest = (saved.model, saved.processor), saved.digest
            loaded[0].to("cuda" if torch.cuda.is_available() else "cpu")
        self._model, self._processor = loaded
        self.seconds = seconds_read(self._processor)
        self._lock = Lock()

    def stream(
        self, ecgs: Sequence[Ecg], question: str, history: Turns = (), stop: Event | None = None
    ) -> Iterator[str]:
        """See `Engine`."""

        def produce(put: Put, over: Over) -> None:
            while not self._lock.acquire(timeout=LOOK):
                if over():
                    return
            try:
                if not over():
                    self._generate(ecgs, question, history, put, over)
            finally:
                self._lock.release()

        return streamed(produce, stop)

    def _generate(self, ecgs: Sequence[Ecg], question: str, history: Turns, put: Put, over: Over) -> None:
        class Pieces(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                if text:
                    put(text)

        def stopped(ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
            return torch.full((len(ids),), over(), dtype=torch.bool, device=ids.device)

        inputs = self._processor(conversation(len(ecgs), question, history), ecgs or None, add_generation_prompt=True)
        new = self._room(int(inputs["input_ids"].shape[1]), question)
        inputs = inputs.to(self._model.device, self._model.dtype)  # casts the signal, not the ids
        with torch.inference_mode():
            streamer = Pieces(self._processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
            greedy = {"do_sample": False, "max_new_tokens": new}
            self._model.generate(
                **inputs, **greedy, streamer=streamer, stopping_criteria=StoppingCriteriaList([stopped])
            )

    def _room(self, prompt: int, question: str) -> int:
        """Tokens that an answer may have after a prompt of so many, which ends with the question.

        Raises:
            TooLong: There is hardly any room for an answer.
        """
        text = self._model.config.get_text_config()
        most = vars(text).get(text.attribute_map.get("max_position_embeddings", "max_position_embeddings"))
        if most is None:
            return self.max_new_tokens
        over = prompt + min(self.max_new_tokens, most // ROOM) - most
        if over <= 0:
            return min(self.max_new_tokens, int(most) - prompt)
        words = len(self._processor.tokenizer(question, add_special_tokens=False)["input_ids"])
        if over >= words:
            raise TooLong("the ECG alone is too long for this model, whatever is asked")
        shorter = int(len(question) * (1 - over / words)) // 10 * 10
        raise TooLong(f"the question is too long for this model: shorten it to about {max(shorter, 10)} characters")
