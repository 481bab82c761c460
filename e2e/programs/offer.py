"""Offers many connections to an echo server at once and holds those that are answered. Who is reset comes again.

usage: offer.py HOST PORT COUNT SECONDS; prints "offered" when each has been tried once, a line of JSON at the end
"""
import json, resource, select, socket, sys, time

host, port, count, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
poll, under_way, answered, again = select.epoll(), {}, {}, []
report = {"offered": count, "answered": 0, "most_answered": 0, "resets": 0, "lost": 0}
begun = time.monotonic()


def offer():
    connection = socket.socket()
    connection.setblocking(False)
    connection.connect_ex((host, port))
    poll.register(connection, select.EPOLLOUT)
    under_way[connection.fileno()] = connection


def heard(number, event):
    held = number in answered
    connection = answered.pop(number) if held else under_way.pop(number)
    try:
        if not held and not event & select.EPOLLIN:
            connection.send(b"x")
            poll.modify(number, select.EPOLLIN)
            under_way[number] = connection
        elif not held and connection.recv(1) == b"x":
            answered[number] = connection
        else:
            raise ConnectionResetError
    except OSError:
        report["lost" if held else "resets"] += 1
        poll.unregister(number)
        connection.close()
        again.append(time.monotonic() + 1)


def turn(wait):
    for number, event in poll.poll(wait, 256):
        heard(number, event)
    report["most_answered"] = max(report["most_answered"], len(answered))


for _ in range(count):
    offer()
    turn(0)
print("offered", flush=True)
while time.monotonic() < begun + seconds:
    turn(0.05)
    while again and again[0] <= time.monotonic():
        again.pop(0)
        offer()
report["answered"] = len(answered)
print(json.dumps(report), flush=True)
