"""What goes over the socket between an environment's process and ours: JSON in frames, and now and
then a socket.

A frame is its length in four bytes, big endian, and so many bytes of JSON. A socket travels beside
one byte of its own, after the frame that announces it.
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
    body = json.dumps(message).encode()  # ASCII: a lone surrogate in an observation travels too
    connection.sendall(_LENGTH.pack(len(body)) + body)
    for each in sockets:
        socket.send_fds(connection, [b"+"], [each.fileno()])


def receive(connection: socket.socket) -> dict[str, Any]:
    """EOFError where the other side is gone, TimeoutError as the socket says."""
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    message: dict[str, Any] = json.loads(_exactly(connection, length))
    return message


def receive_socket(connection: socket.socket) -> socket.socket:
    """The socket that follows a frame."""
    data, files, _, _ = socket.recv_fds(connection, 1, 1)
    if not data or len(files) != 1:
        raise EOFError
    return socket.socket(fileno=files[0])


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(min(size - len(parts), 1 << 20))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)
