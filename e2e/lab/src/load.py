"""Calls an HTTP server again and again, a new connection each time, and counts what fails; beside that it may keep one
connection to a Redis server in use. Ends on SIGTERM, or when whoever started it has ended, and prints one line of JSON.

usage: load.py HOST PORT CALLERS [REDIS_HOST REDIS_PORT]
"""
import json, os, signal, socket, sys, threading, time

host, port, callers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
stop = threading.Event()
lock = threading.Lock()
report = {"calls": 0, "failures": [], "longest_ms": 0.0, "exchanges": 0, "long_connection": None}
TIMEOUT = 20


def call():
    with socket.create_connection((host, port), TIMEOUT) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\nHost: load\r\n\r\n")
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n")[0] + b" ":
        raise ValueError(f"answered {answer[:60]!r}")
    length = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    if length and int(length[0]) != len(body):
        raise ValueError(f"{len(body)} of {int(length[0])} bytes")


def keep_calling():
    while not stop.is_set():
        begun, failure = time.monotonic(), None
        try:
            call()
        except Exception as error:
            failure = f"after {time.monotonic() - begun:.3f} s: {type(error).__name__} {error}"
        with lock:
            report["calls"] += 1
            report["longest_ms"] = max(report["longest_ms"], 1000 * (time.monotonic() - begun))
            if failure and len(report["failures"]) < 100:
                report["failures"].append(failure)
        stop.wait(0.01)


def keep_one_connection():
    try:
        with socket.create_connection((sys.argv[4], int(sys.argv[5])), TIMEOUT) as connection:
            while not stop.is_set():
                connection.sendall(b"PING\r\n")
                answer = b""
                while not answer.endswith(b"\r\n"):
                    chunk = connection.recv(64)
                    if not chunk:
                        raise ValueError("closed by the server")
                    answer += chunk
                if answer != b"+PONG\r\n":
                    raise ValueError(f"answered {answer!r}")
                report["exchanges"] += 1
                stop.wait(0.02)
    except Exception as error:
        report["long_connection"] = f"after {report['exchanges']} exchanges: {type(error).__name__} {error}"


signal.signal(signal.SIGTERM, lambda *_: stop.set())
threads = [threading.Thread(target=keep_calling) for _ in range(callers)]
if len(sys.argv) > 5:
    threads.append(threading.Thread(target=keep_one_connection))
for thread in threads:
    thread.start()
parent = os.getppid()
print("running", flush=True)
while not stop.wait(0.2):
    if os.getppid() != parent:
        stop.set()
for thread in threads:
    thread.join()
print(json.dumps(report), flush=True)
