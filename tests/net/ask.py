"""Asks a name server for many names at once, from one socket, and says how many of them it knew.

    ask.py SERVER COUNT LABEL     the names are LABEL-0.example, LABEL-1.example ..
"""

import select
import socket
import struct
import sys
import time

server, count, label = sys.argv[1], int(sys.argv[2]), sys.argv[3]
asked = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asked.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
asked.connect((server, 53))
asked.setblocking(False)
answers, last = 0, time.monotonic()


def read():
    global answers, last
    while True:
        try:
            answer = asked.recv(4096)
        except (BlockingIOError, ConnectionRefusedError):
            return
        known = answer[3] & 0x0F == 0  # RCODE, RFC 1035 section 4.1.1
        answers, last = answers + known, time.monotonic()


for number in range(count):
    host = f"{label}-{number}".encode()
    name = bytes([len(host)]) + host + b"\x07example\0"
    question = struct.pack(">HHHHHH", number & 0xFFFF, 0x0100, 1, 0, 0, 0) + name + b"\0\1\0\1"
    try:
        asked.send(question)
    except BlockingIOError:
        select.select([], [asked], [])
        asked.send(question)
    if number % 64 == 0:
        read()
while time.monotonic() - last < 3:
    select.select([asked], [], [], 0.5)
    read()
print(answers)
