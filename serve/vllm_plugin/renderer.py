"""Chat requests to token ids, by the processor the model was trained with.

vLLM would put content parts into a chat template, and a user's `<ecg>` with them. Here `ElmProcessor` does it all:
special tokens that are typed are text, an answer is asked for after the very tokens it was trained after, and a line of
measured features stands behind its ECG where the model was trained with one. Each ECG is one placeholder then, which
`processing` repeats as often as the ECG has tokens.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any, cast

import torch
from vllm.exceptions import VLLMValidationError
from vllm.renderers.hf import HfRenderer
from vllm.utils.async_utils import make_async

from data.conversations.rows import Message
from data.ecg import Ecg
from data.measure import measure
from elm.inputs.window import seconds_read
from serve.vllm_plugin.messages import notes_on, read_messages, refused
from serve.vllm_plugin.notes import Notes, note
from serve.vllm_plugin.settings import processor_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from vllm.config import VllmConfig
    from vllm.inputs import MultiModalInput, TokensInput, TokensPrompt
    from vllm.renderers import ChatParams
    from vllm.renderers.chat_utils import ChatCompletionMessageParam, ConversationMessage

    Rendered = tuple[list[ConversationMessage], "Prompt"]

Prompt = dict[str, Any]  # a `TokensPrompt` with a mark of ours

# Settings of a chat template that may be given; vLLM's server always says how Cohere's models would like it.
_READ = ("add_generation_prompt", "chat_template", "cohere_format", "return_dict")
CHARACTERS = 32  # of text for each token that can be read: it would be seconds until tokens could be counted
_RENDERED = "_elm_rendered"  # marks a prompt as ours, on its way from `render_messages` to `_process_tokens`


class ElmRenderer(HfRenderer):
    """vLLM's renderer for text, `ElmProcessor` for chats."""

    def __init__(self, config: VllmConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(config, tokenizer)
        self.processor = processor_of(config.model_config)
        self._max_tokens = int(config.model_config.max_model_len)
        self._lock = Lock()  # a tokenizer serves one thread at a time
        self._render_async = make_async(self._noted, executor=self._executor)

    def render_messages(self, messages: list[ChatCompletionMessageParam], params: ChatParams) -> Rendered:
        """The conversation, and its prompt: token ids with one placeholder per ECG, and the ECGs.

        Raises:
            VLLMValidationError: The request is not understood; answered with status 400.
        """
        rendered, notes = self._noted(messages, params)
        note(notes)
        return rendered

    async def render_messages_async(self, messages: list[ChatCompletionMessageParam], params: ChatParams) -> Rendered:
        """`render_messages` in another thread: reading and measuring ECGs takes time."""
        rendered, notes = await self._render_async(messages, params)
        note(notes)  # back in the task of the request
        return rendered

    def _noted(self, messages: list[ChatCompletionMessageParam], params: ChatParams) -> tuple[Rendered, Notes]:
        """The conversation with its prompt, and what is wrong with its ECGs."""
        try:
            return self._rendered(messages, params)
        except ValueError as error:
            raise VLLMValidationError(refused(error), parameter="messages") from error

    def _rendered(self, messages: list[ChatCompletionMessageParam], params: ChatParams) -> tuple[Rendered, Notes]:
        if params.chat_template is not None:
            raise ValueError("a chat template must not be given: the model reads the one it was trained with")
        settings = params.get_apply_chat_template_kwargs()
        if odd := sorted(name for name, value in settings.items() if value and name not in _READ):
            raise ValueError(f"this model does not read {', '.join(odd)}")
        conversation, ecgs = read_messages(messages)
        self._check_count(len(ecgs))
        texts = [{**m, "content": "".join(part["text"] for part in m["content"])} for m in conversation]
        if (length := sum(len(m["content"]) for m in texts)) > (most := CHARACTERS * self._max_tokens):
            raise ValueError(f"the conversation has {length} characters of text, more than {most}")
        ids = self._ids(conversation, ecgs, bool(settings.get("add_generation_prompt", True)))
        prompt = {"prompt_token_ids": ids, _RENDERED: True, **self._data(ecgs)}
        return cast("Rendered", (texts, prompt)), notes_on(ecgs, seconds_read(self.processor))

    def _check_count(self, ecgs: int) -> None:
        self.get_mm_processor().info.validate_num_items("ecg", ecgs)

    def _ids(self, conversation: list[Message], ecgs: list[Ecg], prompt: bool) -> list[int]:
        processor = self.processor
        lines = processor.lines([measure(ecg) for ecg in ecgs]) if processor.measured else None
        one_each = torch.ones(len(ecgs), 1, dtype=torch.bool)
        with self._lock:
            inputs = processor(conversation, ecg_mask=one_each, measured=lines, add_generation_prompt=prompt)
        return inputs["input_ids"][0].tolist()

    def _data(self, ecgs: list[Ecg]) -> dict[str, object]:
        return {"multi_modal_data": {"ecg": ecgs}} if ecgs else {}

    def _process_tokens(self, prompt: Prompt, **settings: bool) -> TokensInput | MultiModalInput:
        return super()._process_tokens(self._allowed(prompt), **settings)

    async def _process_tokens_async(self, prompt: Prompt, **settings: bool) -> TokensInput | MultiModalInput:
        return await super()._process_tokens_async(self._allowed(prompt), **settings)

    def _allowed(self, prompt: Prompt) -> TokensPrompt:
        """Check that the model can read a prompt, whoever wrote it; its ECGs are identified by their content alone.

        What callers call an ECG (`multi_modal_uuids`) would become its identity in vLLM's caches: the same name with
        another ECG would be answered about the first one.
        """
        prompt = {name: value for name, value in prompt.items() if name != "multi_modal_uuids"}
        rendered = prompt.pop(_RENDERED, False)
        places = prompt["prompt_token_ids"].count(self.processor.ecg_token_id)
        problem, field = "", "prompt"
        if prompt.get("mm_processor_kwargs"):
            field = "mm_processor_kwargs"
            problem = f"an ECG is prepared as the model was trained: {field} must be left out"
        elif places and not prompt.get("multi_modal_data"):
            problem = f"the prompt has {places} {self.processor.ecg_token} tokens but no ECG"
        elif places and self.processor.measured and not rendered:
            problem = (
                "this model reads a line of measured features behind each ECG: ask it by chat, which puts it there"
            )
        if problem:
            raise VLLMValidationError(problem, parameter=field)
        return cast("TokensPrompt", prompt)
