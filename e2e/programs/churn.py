"""Connections to server.py that stand and end in every way that TCP has, in rounds.

usage: churn.py HOST EACH ROUNDS; opens EACH of a kind, holds them, ends all of them, ROUNDS times
"""
import socket, struct, sys

host, each, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
TIMEOUT = 60


def connect(port):
    return socket.create_connection((host, port), TIMEOUT)


def echoed(connection):
    connection.sendall(b"x")
    assert connection.recv(1) == b"x"
    return connection


def idle():
    """Was of use once."""
    return echoed(connect(8081))


def silent():
    """Says nothing at all."""
    return connect(8080)


def half_closed():
    """The server has ended its half."""
    connection = connect(8087)
    while connection.recv(100):
        pass
    return connection


def reset():
    """Ends with RST."""
    connection = echoed(connect(8081))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return connection


def never_read():
    """Asks for more than all buffers on the way hold, and reads none of it; ends with RST, too."""
    connection = connect(8084)
    connection.sendall(b"16777216\n")
    return connection


for number in range(rounds):
    # Those that are never read come last: they use up the windows that they share with the others.
    held = [kind() for kind in (idle, silent, half_closed, reset, never_read) for _ in range(each)]
    for connection in held:
        connection.close()
    print("round", number + 1, flush=True)
