"""Asking a server that `python -m serve.server` started. Needs neither torch nor vLLM.

    from serve.client import EcgChat

    chat = EcgChat("http://127.0.0.1:8000")
    answer = chat.ask(read_ecg("record"), "Is this a normal ECG?")
    print(answer.text, answer.model_hash, answer.notes)  # notes: what is wrong with the recording
    for piece in chat.stream(ecg, "And the rhythm?", history=[("Is this a normal ECG?", answer.text)]):
        print(piece, end="", flush=True)

Answers are greedy. Questions and recordings go to this server alone: redirections are not followed.
"""

from data.wire.http import ServerError
from serve.serving.client import Answer, EcgChat

__all__ = ["Answer", "EcgChat", "ServerError"]
