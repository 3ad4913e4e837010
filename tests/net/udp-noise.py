"""Throws garbage at a UDP port and prints how many datagrams came back, apart from Retry packets.

A Retry answers what looks like the Initial packet of a handshake, before anything of it is decrypted,
keeps no state, and is smaller (RFC 9000 section 8.1.2): that is what it is for.

usage: udp-noise.py SEED COUNT ADDRESS PORT            from a socket of its own
       udp-noise.py SEED COUNT ADDRESS PORT FROM PORT  as if FROM had sent it (IPv4, needs root);
                                                       what comes back is not ours to see: prints 0
"""

import random
import select
import socket
import struct
import sys

seed, count, address, port = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
rng = random.Random(seed)
QUIC_V1 = 1
BURST = 50


def varint(number):
    if number < 64:
        return struct.pack(">B", number)
    if number < 16384:
        return struct.pack(">H", number | 0x4000)
    return struct.pack(">I", number | 0x80000000)


def long_header(kind, version, payload_len):
    """RFC 9000 section 17.2, with everything that follows the header made up."""
    dcid, scid = rng.randbytes(rng.choice([0, 4, 8, 16, 20])), rng.randbytes(rng.choice([0, 8, 20]))
    header = bytes([0xC0 | kind << 4 | rng.randrange(16)]) + struct.pack(">I", version)
    header += bytes([len(dcid)]) + dcid + bytes([len(scid)]) + scid
    if kind == 0:
        token = rng.randbytes(rng.choice([0, 0, 16, 80]))
        header += varint(len(token)) + token
    return header + varint(payload_len) + rng.randbytes(payload_len)


def anything():
    return rng.randbytes(rng.randrange(0, 1473))


def initial():
    return long_header(0, QUIC_V1, rng.choice([20, 400, 1200, 1300]))


def other_long():
    return long_header(rng.choice([1, 2, 3]), QUIC_V1, rng.choice([20, 400, 1200]))


def other_version():
    version = rng.choice([0, 2, 0x0A0A0A0A, 0x6B3343CF, rng.randrange(2**32)])
    return long_header(rng.randrange(4), version, rng.choice([20, 1200, 1300]))


def cut():
    return initial()[: rng.randrange(1, 60)]


def bent():
    packet = bytearray(initial())
    for _ in range(rng.randrange(1, 8)):
        packet[rng.randrange(min(len(packet), 48))] = rng.randrange(256)
    return bytes(packet[:1472])


def short():
    return bytes([0x40 | rng.randrange(64)]) + rng.randbytes(rng.choice([0, 7, 19, 20, 40, 200, 1400]))


KINDS = [anything, initial, other_long, other_version, cut, bent, short]


def is_retry(packet):
    return packet[0] & 0xF0 == 0xF0 and packet[1:5] == struct.pack(">I", QUIC_V1) and len(packet) < 200


def own_socket():
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.connect((address, port))
    back = 0

    def drain(seconds):
        nonlocal back
        while select.select([sock], [], [], seconds)[0]:
            try:
                back += not is_retry(sock.recv(65536))
            except ConnectionRefusedError:
                sys.exit("nobody listens there")

    for number in range(count):
        sock.send(rng.choice(KINDS)()[:1472])
        if number % BURST == 0:
            drain(0.002)  # also leaves the other side time to read
    drain(1)
    return back


def forged(source, source_port):
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    addresses = socket.inet_aton(source) + socket.inet_aton(address)
    for number in range(count):
        payload = rng.choice(KINDS)()[:1400]
        udp = struct.pack(">HHHH", source_port, port, 8 + len(payload), 0) + payload
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), number % 65536, 0, 64, 17, 0) + addresses
        raw.sendto(ip + udp, (address, 0))
        if number % BURST == 0:
            select.select([], [], [], 0.002)
    return 0


print(forged(sys.argv[5], int(sys.argv[6])) if len(sys.argv) > 6 else own_socket())
