"""Free TCP ports on 127.0.0.1 for several clusters that start at once."""

import socket
from contextlib import ExitStack


def reserve(count: int) -> list[int]:
    """`count` distinct ports that no other `reserve`, of this or another process, returns for about a minute.

    Each port gets a connection whose server side closes first and so stays in TIME_WAIT: the kernel then
    gives the port to nobody who asks for a free one, while a server that sets SO_REUSEADDR (as Go's listeners
    and asyncio's do) can bind it. Merely binding port 0 and closing leaves a gap in which two clusters take
    the same port.
    """
    ports = []
    with ExitStack() as held:
        for _ in range(count):
            listener = held.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
            address: tuple[str, int] = listener.getsockname()
            with socket.create_connection(address) as client:
                server, _ = listener.accept()
                server.close()
                client.recv(1)
            ports.append(address[1])
    return ports
