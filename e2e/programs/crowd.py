"""A crowd of connections to the odd servers (server.py) while something changes: idle ones that say something at the
beginning and at the end, busy ones that ask and are answered all the time, and short calls, each a connection of its own.
Prints "standing" when all stand. Ends on SIGTERM, or when whoever started it has ended, and prints one line of JSON.

usage: crowd.py HOST IDLE BUSY SHORT
"""
import asyncio, json, os, resource, signal, sys, time

host, idle, busy, short = sys.argv[1], *map(int, sys.argv[2:5])
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
report = {"idle": 0, "busy": 0, "short": 0, "exchanges": 0, "longest_ms": 0.0, "failures": {"idle": [], "busy": [], "short": []}}
stop = asyncio.Event()
TIMEOUT = 20


def failed(kind, begun, error):
    if len(report["failures"][kind]) < 2000:
        after = time.monotonic() - begun
        report["failures"][kind].append(f"after {after:.3f} s: {type(error).__name__} {error}")


async def pause(seconds):
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        pass


async def exchange(reader, writer, said):
    writer.write(said)
    heard = await asyncio.wait_for(reader.readexactly(len(said)), TIMEOUT)
    if heard != said:
        raise ValueError(f"heard {heard[:40]!r} instead of {said[:40]!r}")


async def stand(kind, number, meanwhile, standing):
    begun = time.monotonic()
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(host, 8081), TIMEOUT)
        await exchange(reader, writer, f"{kind} {number}\n".encode())
        report[kind] += 1
        standing.release()
        await meanwhile(reader, writer)
        await exchange(reader, writer, f"{kind} {number} ends\n".encode())
        writer.close()
    except Exception as error:
        failed(kind, begun, error)
        standing.release()


async def be_idle(reader, writer):
    # Whoever is cut is told at once, and not only when it speaks again.
    ended = asyncio.ensure_future(reader.read(1))
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait([ended, stopped], return_when=asyncio.FIRST_COMPLETED)
    if ended.done():
        ended.result()
        raise ValueError("closed")
    ended.cancel()
    await asyncio.gather(ended, return_exceptions=True)


async def be_busy(reader, writer):
    while not stop.is_set():
        begun = time.monotonic()
        await exchange(reader, writer, b"?" * 500)
        report["exchanges"] += 1
        report["longest_ms"] = max(report["longest_ms"], 1000 * (time.monotonic() - begun))
        await pause(0.2)


async def call():
    reader, writer = await asyncio.open_connection(host, 8080)
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    answer = await reader.read()
    writer.close()
    if b" 200 " not in answer or b"i am" not in answer:
        raise ValueError(f"answered {answer[:60]!r}")


async def keep_calling():
    while not stop.is_set():
        begun = time.monotonic()
        try:
            await asyncio.wait_for(call(), TIMEOUT)
            report["short"] += 1
        except Exception as error:
            failed("short", begun, error)
        report["longest_ms"] = max(report["longest_ms"], 1000 * (time.monotonic() - begun))
        await pause(0.02)


async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    standing = asyncio.Semaphore(0)
    ones = [stand("idle", number, be_idle, standing) for number in range(idle)]
    ones += [stand("busy", number, be_busy, standing) for number in range(busy)]
    tasks = []
    for one in ones:
        tasks.append(asyncio.ensure_future(one))
        # Not more at once than a backlog of a quiet machine takes.
        if len(tasks) % 50 == 0:
            await asyncio.sleep(0.02)
    for _ in ones:
        await standing.acquire()
    tasks += [asyncio.ensure_future(keep_calling()) for _ in range(short)]
    print("standing", flush=True)
    parent = os.getppid()
    while not stop.is_set():
        await pause(0.2)
        if os.getppid() != parent:
            stop.set()
    await asyncio.gather(*tasks)
    print(json.dumps(report), flush=True)


asyncio.run(main())
