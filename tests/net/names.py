"""A name server for tests: answers A questions for the names that it is given, and all others with an empty answer.

    names.py ADDRESS [NAME=IPV4...]
"""

import socket
import struct
import sys

server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((sys.argv[1], 53))
known = dict(entry.split("=") for entry in sys.argv[2:])


def name(question):
    """The name asked for, and where it ends (RFC 1035 section 4.1.2)."""
    labels, at = [], 12
    while question[at]:
        labels.append(question[at + 1 : at + 1 + question[at]].decode())
        at += 1 + question[at]
    return ".".join(labels).lower(), at + 1


while True:
    question, client = server.recvfrom(512)
    asked, end = name(question)
    record = b""
    if asked in known and question[end : end + 4] == b"\0\1\0\1":
        record = b"\xc0\x0c\0\1\0\1" + struct.pack(">IH", 5, 4) + socket.inet_aton(known[asked])
    # QR set, everything else as asked; additional records are left out.
    header = question[:2] + bytes([question[2] | 0x80, question[3]]) + struct.pack(">HHHH", 1, bool(record), 0, 0)
    server.sendto(header + question[12 : end + 4] + record, client)
