"""The callers of server.py.

usage: client.py WHAT HOST PORT [ARGUMENT]; prints what it saw, ends with 0 if that is as it should be
"""
import asyncio, hashlib, os, random, socket, sys, time

what, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
argument = sys.argv[4] if len(sys.argv) > 4 else ""
TIMEOUT = 60


def connect():
    return socket.create_connection((host, port), TIMEOUT)


def read_all(connection):
    received = b""
    while chunk := connection.recv(1 << 18):
        received += chunk
    return received


def outcome():
    """Says how a connection attempt, and a byte on it, ends: without TCP's word nobody would know."""
    begun = time.monotonic()
    try:
        with connect() as connection:
            connection.sendall(b"x\n")
            answer = connection.recv(100)
            return f"answered {answer!r}" if answer else "closed"
    except ConnectionRefusedError:
        return "refused"
    except ConnectionResetError:
        return "reset"
    except BrokenPipeError:
        return "reset"
    except TimeoutError:
        return f"silent for {time.monotonic() - begun:.0f} s"
    except OSError as error:
        return f"error {error}"


def half_close():
    """Ends its own half first and is answered all the same."""
    with connect() as connection:
        connection.sendall(b"later:" + b"answer me after my end")
        connection.shutdown(socket.SHUT_WR)
        return read_all(connection).decode()


def other_half():
    """The server ends its half first; what is sent after that still arrives there."""
    with connect() as connection:
        name = read_all(connection)
        connection.sendall(b"y" * 100_000)
        connection.shutdown(socket.SHUT_WR)
        return name.decode()


def listens_first():
    with connect() as connection:
        greeting = connection.makefile("rb").readline()
        connection.sendall(b"thank you\n")
        return greeting.decode() + read_all(connection).decode()


def upload():
    block, digest, left = random.Random(os.getpid()).randbytes(1 << 18), hashlib.sha256(), int(argument)
    size = left
    with connect() as connection:
        while left:
            chunk = block[:left]
            digest.update(chunk)
            connection.sendall(chunk)
            left -= len(chunk)
        connection.shutdown(socket.SHUT_WR)
        answer = read_all(connection).decode().strip()
    assert answer == f"{size} {digest.hexdigest()}", answer
    return "same"


def download():
    size, digest, got, tail = int(argument), hashlib.sha256(), 0, b""
    with connect() as connection:
        connection.sendall(argument.encode() + b"\n")
        while chunk := connection.recv(1 << 18):
            body = chunk[: max(0, size - got)]
            digest.update(body)
            got += len(body)
            tail += chunk[len(body):]
    assert (got, tail.decode()) == (size, digest.hexdigest()), (got, tail)
    return "same"


async def hold_many():
    """All connections stand at the same time before the first of them is used."""
    count = int(argument)
    opened = await asyncio.gather(*[asyncio.open_connection(host, port) for _ in range(count)])

    async def talk(number, reader, writer):
        said = f"number {number}".encode() * 50
        writer.write(said)
        heard = await reader.readexactly(len(said))
        writer.close()
        return heard == said

    good = await asyncio.gather(*[talk(number, *pair) for number, pair in enumerate(opened)])
    assert all(good)
    return f"{len(good)} held"


async def many():
    return await asyncio.wait_for(hold_many(), 60)


does = {
    "outcome": outcome, "half_close": half_close, "other_half": other_half, "listens_first": listens_first,
    "upload": upload, "download": download, "many": lambda: asyncio.run(many()),
}
print(does[what]())
