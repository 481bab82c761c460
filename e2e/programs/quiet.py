"""A quiet neighbour: a call every few milliseconds, each on a new connection (8080 of server.py), and beside that an exchange
on one that stays (8081). Measures from when a call was due, so that waiting for the one before counts.

usage: quiet.py HOST SECONDS; prints a line of JSON: milliseconds of both, and what failed
"""
import json, socket, sys, threading, time

host, seconds = sys.argv[1], float(sys.argv[2])
EVERY = 0.02
failures = []


def call():
    with socket.create_connection((host, 8080), 20) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while chunk := connection.recv(4096):
            answer += chunk
        assert b"i am" in answer, answer


kept = socket.create_connection((host, 8081), 20)


def exchange():
    kept.sendall(b"x")
    assert kept.recv(1) == b"x"


def measure(what, took):
    due = time.monotonic()
    end = due + seconds
    while due < end:
        time.sleep(max(0, due - time.monotonic()))
        try:
            what()
        except Exception as error:
            failures.append(f"{what.__name__}: {type(error).__name__} {error}")
            if what is exchange:
                return
        took.append(1000 * (time.monotonic() - due))
        due += EVERY


calls, exchanges = [], []
threads = [threading.Thread(target=measure, args=pair) for pair in ((call, calls), (exchange, exchanges))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()


def told(took):
    took.sort()
    at = lambda part: round(took[min(len(took) - 1, int(len(took) * part))], 2)
    return {"count": len(took), "p50": at(0.5), "p99": at(0.99), "longest": at(1)}


print(json.dumps({"calls": told(calls), "exchanges": told(exchanges), "failures": failures[:20]}), flush=True)
