"""Floods a server (8083 of server.py) with bytes.

usage: bulk.py HOST CONNECTIONS SECONDS; prints "flooding", and how many bytes it sent at the end
"""
import socket, sys, threading, time

host, connections, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
sent = [0] * connections
end = time.monotonic() + seconds


def flood(number):
    block = bytes(1 << 18)
    with socket.create_connection((host, 8083), 60) as connection:
        while time.monotonic() < end:
            sent[number] += connection.send(block)


threads = [threading.Thread(target=flood, args=(number,)) for number in range(connections)]
for thread in threads:
    thread.start()
print("flooding", flush=True)
for thread in threads:
    thread.join()
print("sent", sum(sent), flush=True)
