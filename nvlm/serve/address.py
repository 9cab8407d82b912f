"""Where the server listens: taken before a model is loaded, and refused where that is not safe."""

from __future__ import annotations

import errno
import ipaddress
import socket

from nvlm.errors import ConfigError


def take_address(host: str, port: int, has_key: bool) -> socket.socket:
    """A socket that is bound and does not listen yet: others learn that the port is taken, and
    clients that nobody answers.

    Args:
        port: 0: one that is free.

    Raises:
        ConfigError: the host is no address of this machine, the port is taken or reserved, or
            other machines could ask without a key.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"--host {host}: {_reason(error)}; give an address of this machine"
        ) from None
    if not has_key and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise ConfigError(
            f"--host {host}: other machines could ask, and there is no key: set NVLM_API_KEY (or "
            "--api-key), or keep to --host 127.0.0.1"
        )
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise ConfigError(f"--host {host}: not an address of this machine") from None
        raise ConfigError(f"--port {port}: {_reason(error)}; give another --port") from None
    return listener


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _reason(error: OSError | UnicodeError) -> str:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return "another program listens there"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text[0].lower() + text[1:]
