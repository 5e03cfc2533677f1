"""Recordings as bytes, and messages that hold them: what a client, the audit and a server hand to each other."""

from data.wire.format import ALTERED_URL, MEDIA_TYPE, URL, chat_messages, data_url, from_wire, to_wire

__all__ = ["ALTERED_URL", "MEDIA_TYPE", "URL", "chat_messages", "data_url", "from_wire", "to_wire"]
