"""A TCP flow that says how long it stood still.

usage: flow.py serve PORT
       flow.py down ADDRESS PORT   the server sends every 20 ms and this end only listens, as a download does
       flow.py echo ADDRESS PORT   this end sends every 20 ms, and the server sends it back

Prints a line for each SIGUSR1: the longest pause since the last one in ms, and the bytes since the start.
Ends when the connection does.
"""

import selectors
import signal
import socket
import sys
import threading
import time

EVERY = 0.02


def serve(port):
    listener = socket.create_server(("", port))
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=answer, args=(connection,), daemon=True).start()


def answer(connection):
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        if connection.recv(1) == b"d":
            while True:
                connection.sendall(b"x" * 100)
                time.sleep(EVERY)
        while data := connection.recv(4096):
            connection.sendall(data)
    except OSError:
        pass


class Flow:
    def __init__(self, mode, address, port):
        self.sends = mode == "echo"
        self.socket = socket.create_connection((address, port), timeout=5)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(mode[0].encode())
        self.socket.setblocking(False)
        self.last, self.longest, self.total = time.monotonic(), 0.0, 0
        signal.signal(signal.SIGUSR1, lambda *_: self.tell())

    def tell(self):
        # A pause that still goes on counts.
        longest = max(self.longest, time.monotonic() - self.last)
        print(int(longest * 1000), self.total, flush=True)
        self.longest = 0.0

    def run(self):
        with selectors.DefaultSelector() as selector:
            selector.register(self.socket, selectors.EVENT_READ)
            due = time.monotonic()
            while True:
                ready = selector.select(max(0.0, due - time.monotonic()))
                if ready:
                    data = self.socket.recv(65536)
                    if not data:
                        return
                    now = time.monotonic()
                    self.longest, self.last = max(self.longest, now - self.last), now
                    self.total += len(data)
                if time.monotonic() >= due:
                    due += EVERY
                    if self.sends:
                        try:
                            self.socket.send(b"y")
                        except BlockingIOError:
                            pass  # its buffer is full: the pause shows


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        Flow(sys.argv[1], sys.argv[2], int(sys.argv[3])).run()
        print("closed", flush=True)
