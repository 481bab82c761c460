"""Servers that behave oddly where networks go wrong, each on a port of its own, IPv4 and IPv6.

usage: server.py NAME
"""
import asyncio, hashlib, random, socket, struct, sys

NAME = sys.argv[1]


async def http(reader, writer):
    """8080: tells its name and who called."""
    while (await reader.readline()).strip():
        pass
    caller = writer.get_extra_info("peername")[0].removeprefix("::ffff:")
    body = f"i am {NAME}, you are {caller}\n"
    writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode())


async def echo(reader, writer):
    """8081: repeats everything, also after the caller has ended its half."""
    kept = []
    while chunk := await reader.read(65536):
        if chunk.startswith(b"later:"):
            kept.append(chunk)
        else:
            writer.write(chunk)
            await writer.drain()
    # Whoever began with "later:" wants the answer only after its end of file.
    writer.write(b"".join(kept))


async def speaks_first(reader, writer):
    """8082: greets before the caller says anything, as SMTP or MySQL do."""
    writer.write(f"220 {NAME}\n".encode())
    await writer.drain()
    writer.write((await reader.readline()).upper())


async def upload(reader, writer):
    """8083: takes everything, then tells its size and digest."""
    digest, size = hashlib.sha256(), 0
    while chunk := await reader.read(1 << 18):
        digest.update(chunk)
        size += len(chunk)
    writer.write(f"{size} {digest.hexdigest()}\n".encode())


async def download(reader, writer):
    """8084: sends as many bytes as it is asked for, then their digest."""
    left, digest = int(await reader.readline()), hashlib.sha256()
    block = random.Random(7).randbytes(1 << 18)
    while left:
        chunk = block[:left]
        digest.update(chunk)
        writer.write(chunk)
        await writer.drain()
        left -= len(chunk)
    writer.write(digest.hexdigest().encode())


async def resets(reader, writer):
    """8086: resets the connection after the first line."""
    await reader.readline()
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def closes_first(reader, writer):
    """8087: says its name and ends its half, then takes what comes and reports it on standard output."""
    writer.write(NAME.encode())
    writer.write_eof()
    print("received", len(await reader.read(-1)), flush=True)


def closing(serve):
    async def handler(reader, writer):
        try:
            await serve(reader, writer)
            await writer.drain()
        except (OSError, ValueError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    return handler


async def main():
    servers = {8080: http, 8081: echo, 8082: speaks_first, 8083: upload, 8084: download, 8086: resets, 8087: closes_first}
    for port, serve in servers.items():
        everywhere = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=2048)
        await asyncio.start_server(closing(serve), sock=everywhere)
    # 8085: for the pod itself only.
    await asyncio.start_server(closing(http), "127.0.0.1", 8085)
    print("serving", flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
