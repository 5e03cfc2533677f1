"""Recordings as bytes, and messages that hold them: what a client, the audit and a server hand to each other."""

from data.wire.format import MEDIA_TYPE, chat_messages, data_url, from_wire, to_wire

__all__ = ["MEDIA_TYPE", "chat_messages", "data_url", "from_wire", "to_wire"]
