"""Whether a port can be listened on, found out before a model is loaded for minutes."""

import errno
import socket

_WHY = {
    errno.EADDRINUSE: "port {port} is taken: end the program that listens there, or choose another one (--port)",
    errno.EACCES: "port {port} is not for every user: choose one above 1023 (--port)",
    errno.EADDRNOTAVAIL: "{host} is no address of this machine: choose another one (--host)",
}


def require_free(host: str, port: int) -> None:
    """Refuse a port that cannot be listened on.

    Raises:
        OSError: It is taken, or not for this user, or the host is no address of this machine; says what to do.
    """
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise OSError(f"{host} is no address that is known: choose another one (--host)") from error
    with socket.socket(address[0], socket.SOCK_STREAM) as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: what ended a minute ago is no bar
        try:
            free.bind(address[4])
        except OSError as error:
            raise OSError(_WHY.get(error.errno or 0, str(error)).format(host=host, port=port)) from error


def require_port(port: int) -> None:
    """Raises `ValueError` for a number that is no port."""
    if not 1 <= port <= 65535:
        raise ValueError(f"--port must be from 1 to 65535, got {port}")
