"""The messages between leafe and an environment's process: JSON frames, and sockets beside them.

A frame is a length (four bytes, big endian) and that many bytes of JSON. A socket is passed with a
byte of its own, after the frame that announces it.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

_LENGTH = struct.Struct(">I")


def send(
    connection: socket.socket, message: Mapping[str, Any], sockets: tuple[socket.socket, ...] = ()
) -> None:
    """Send one frame, and then the sockets."""
    body = json.dumps(message).encode()  # ASCII, so lone surrogates of an observation pass too
    connection.sendall(_LENGTH.pack(len(body)) + body)
    for each in sockets:
        socket.send_fds(connection, [b"+"], [each.fileno()])


def receive(connection: socket.socket) -> dict[str, Any]:
    """Receive one frame. EOFError if the other side is gone; TimeoutError as the socket is set."""
    (length,) = _LENGTH.unpack(_receive_exactly(connection, _LENGTH.size))
    message: dict[str, Any] = json.loads(_receive_exactly(connection, length))
    return message


def receive_socket(connection: socket.socket) -> socket.socket:
    """Receive one socket, which follows a frame."""
    data, files, _, _ = socket.recv_fds(connection, 1, 1)
    if not data or len(files) != 1:
        raise EOFError
    return socket.socket(fileno=files[0])


def _receive_exactly(connection: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(min(size - len(parts), 1 << 20))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)
