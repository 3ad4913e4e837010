"""Misbehaves on a Unix socket and prints, one line a misdeed, what came of it.

usage: socket-noise.py helper SOCKET | gateway SOCKET | crowd SOCKET COUNT

A line is NAME, a tab, and "closed" with the error's code where one was told, or "open" when the
other side had not hung up after 8 s. crowd opens so many connections at once and prints how many
were served, how many were refused with which code, and waits for a line on stdin.
"""

import json
import random
import select
import socket
import struct
import sys
import time

what, path = sys.argv[1], sys.argv[2]
rng = random.Random(1)


def connect():
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(path)
    return sock


def frame(payload):
    if not isinstance(payload, bytes):
        payload = json.dumps(payload).encode()
    return struct.pack(">I", len(payload)) + payload


def ask(request, number=1):
    return frame({"id": number, "request": request})


def listen(sock, seconds):
    """Everything that comes until the other side hangs up; None for "it did not"."""
    heard, end = b"", time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if not select.select([sock], [], [], left)[0]:
            break
        try:
            chunk = sock.recv(65536)
        except ConnectionResetError:
            chunk = b""
        if not chunk:
            return heard, True
        heard += chunk
    return heard, False


def code(heard):
    """The E-code of the last error frame, or "" when there is none."""
    found = ""
    while len(heard) >= 4:
        size = struct.unpack(">I", heard[:4])[0]
        try:
            found = json.loads(heard[4 : 4 + size])["event"].get("code", found)
        except ValueError:
            break
        heard = heard[4 + size :]
    return found


def misdeed(name, sent, then_close=False):
    sock = connect()
    try:
        sock.sendall(sent)
        if then_close:
            sock.shutdown(socket.SHUT_WR)
    except BrokenPipeError:
        pass
    heard, closed = listen(sock, 8)
    print(name, f"{'closed' if closed else 'open'} {code(heard)}".rstrip(), sep="\t", flush=True)
    sock.close()


HELLO = {"type": "hello", "version": 1, "client": "noise"}

if what == "helper":
    misdeed("random bytes", rng.randbytes(5000))
    misdeed("a frame that is no JSON", frame(rng.randbytes(500)))
    misdeed("an empty frame", frame(b""))
    misdeed("a frame of 64 KiB and one byte", struct.pack(">I", 65537))
    misdeed("a frame of 4 GiB", struct.pack(">I", 0xFFFFFFFF) + b"x" * 100000)
    misdeed("64 KiB of brackets", frame(b"[" * 65536))
    misdeed("a request that is none", ask({"type": "explode"}))
    misdeed("no hello", ask({"type": "status"}))
    misdeed("hello twice", ask(HELLO) + ask(HELLO, 2))
    misdeed("a version to come", ask({**HELLO, "version": 99}) + ask({"type": "connect"}, 2))
    misdeed("half a frame and silence", ask(HELLO)[:10])
    misdeed("half a frame and the end", ask(HELLO)[:10], then_close=True)
elif what == "gateway":
    for name, sent in [
        ("random bytes", rng.randbytes(5000).replace(b"\n", b" ") + b"\n"),
        ("a line without end", b"x" * 100000),
    ]:
        misdeed(name, sent, then_close=True)
elif what == "crowd":
    crowd = [connect() for _ in range(int(sys.argv[3]))]
    served, refused = 0, {}
    for sock in crowd:
        try:
            sock.sendall(ask(HELLO))
        except BrokenPipeError:
            pass
    for sock in crowd:
        heard, closed = listen(sock, 0.3)
        if closed:
            refused[code(heard)] = refused.get(code(heard), 0) + 1
        elif b'"hello"' in heard:
            served += 1
    print(f"served {served}", *(f"refused {number} {why}" for why, number in refused.items()), flush=True)
    sys.stdin.readline()
