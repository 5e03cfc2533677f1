"""Chat templates that can be learned from, and where in a rendered conversation the assistant speaks."""

from collections.abc import Sequence
from functools import partial

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]

# As the instruction-tuned models of the family know it, but for what is said below. Each renders a conversation so that
# more turns only add to it, and an answer follows the very characters that ask for it.
LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Qwen 3's own takes the thoughts out of all turns but the last. Here every answer follows the empty thoughts by which
# the model is told not to think.
QWEN_3 = (
    "{% set silent = '<|im_start|>assistant\n<think>\n\n</think>\n\n' %}{% for message in messages %}"
    "{{ silent if message['role'] == 'assistant' else '<|im_start|>' + message['role'] + '\n' }}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ silent }}{% endif %}"
)
# Gemma has no system role. What is said in one stands in front of the first user's words, as in Gemma 3's own template;
# Gemma 2's refuses it.
GEMMA = (
    "{{ bos_token }}{% set first = namespace(words='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set first.words = first.words + message['content'] | trim + '\n\n' %}"
    "{% else %}{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\n' + first.words "
    "+ message['content'] | trim + '<end_of_turn>\n' }}{% set first.words = '' %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# For models that never saw a conversation. Headers end with their line: no lone space is left in front of an answer.
PLAIN = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] | capitalize + ':\n' + message['content'] | trim }}"
    "{{ eos_token + '\n' if message['role'] == 'assistant' else '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)
# Llama 3.2's own (and others) tell the model today's date: the same question would be another one tomorrow.
SAME_DAY = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}\n"


def locate(
    tokenizer: PreTrainedTokenizerBase,
    template: str | None,
    messages: Sequence[dict[str, str]],
    add_generation_prompt: bool = False,
) -> tuple[str, list[Span]]:
    """A conversation as a chat template renders it, and the spans of the assistant's characters, end token included.

    Raises:
        ValueError: The template refuses the conversation, or rewrites earlier turns, so that no span can be located.
    """
    rendered = partial(tokenizer.apply_chat_template, tokenize=False, chat_template=template)
    try:
        whole: str = rendered(messages, add_generation_prompt=add_generation_prompt)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(f"the chat template refuses a conversation of {roles}: {error}") from error
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = rendered(messages[:i], add_generation_prompt=True)
        upto = rendered(messages[: i + 1], add_generation_prompt=False)
        if not (upto.startswith(before) and whole.startswith(upto.rstrip())):
            raise ValueError("the chat template rewrites earlier turns: the assistant's words cannot be located")
        spans.append((len(before), len(upto.rstrip())))
    return whole, spans
