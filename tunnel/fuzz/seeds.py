"""Writes a few small inputs for each fuzz target, from which the fuzzer goes on.

usage: seeds.py FOLDER     makes FOLDER/TARGET/NAME
"""

import json
import os
import struct
import sys

folder = sys.argv[1]


def seed(target, name, data):
    os.makedirs(os.path.join(folder, target), exist_ok=True)
    with open(os.path.join(folder, target, name), "wb") as file:
        file.write(data)


def ipv4(protocol, payload, flags=0x4000):
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 1, flags, 64, protocol, 0)
    return head + bytes([100, 77, 3, 9, 198, 51, 100, 7]) + payload


def ipv6(protocol, payload):
    source, destination = bytes.fromhex("fd4e" + "00" * 13 + "09"), bytes.fromhex("20010db8" + "00" * 11 + "07")
    return struct.pack(">IHBB", 0x60000000, len(payload), protocol, 64) + source + destination + payload


def tcp(payload, flags=0x10):
    return struct.pack(">HHIIBBHHH", 5000, 443, 1, 1, 0x50, flags, 256, 0, 0) + payload


def udp(payload):
    return struct.pack(">HHHH", 5000, 443, 8 + len(payload), 0) + payload


packets = {
    "tcp4": ipv4(6, tcp(b"x" * 60)),
    "tcp6": ipv6(6, tcp(b"x" * 60)),
    "udp4": ipv4(17, udp(b"x" * 60)),
    "udp6": ipv6(17, udp(b"x" * 60)),
    "icmp4": ipv4(1, b"\x08\x00\x00\x00ping"),
    "icmp6-error": ipv6(58, b"\x02\x00\x00\x00\x00\x00\x05\x00" + ipv6(17, udp(b""))),
    "fragment4": ipv4(17, b"x" * 24, 0x2001),
    "fragment6": ipv6(44, struct.pack(">BBHI", 17, 0, 1, 9) + udp(b"x" * 8)),
    "options6": ipv6(0, b"\x3c\x00" + b"\x00" * 6 + b"\x06\x00" + b"\x00" * 6 + tcp(b"x")),
}
for name, packet in packets.items():
    seed("packet", name, packet)
    for gso, size in ((0, 0), (1, 7), (5, 7), (4, 20)):
        at = 20 if packet[0] == 0x45 else 40
        vnet = struct.pack("=BBHHHH", 1, gso, 0, size, at, 6 if "udp" in name else 16)
        seed("segment", f"{name}-{gso}-{size}", vnet + packet)
    half = len(packet) // 2 + len(packet) % 2
    pieces = [b"\x02\x00\x00\x01" + packet[:half], b"\x02\x01\x00\x01" + packet[half:]]
    for order in (0, 1), (1, 0), (0, 0):
        seed("pieces", f"{name}-{order[0]}{order[1]}", b"".join(bytes([len(pieces[i]), 3]) + pieces[i] for i in order))
seed("segment", "closing", struct.pack("=BBHHHH", 1, 1, 0, 9, 20, 16) + ipv4(6, tcp(b"x" * 50, 0x99)))

for name, packet, gso in (
    ("tcp4", ipv4(6, tcp(b"x" * 2500)), 1),
    ("tcp6", ipv6(6, tcp(b"x" * 2500)), 4),
    ("udp4", ipv4(17, udp(b"x" * 2500)), 5),
):
    # Large enough segments to be read with gaps.
    seed("segment", f"gaps-{name}", struct.pack("=BBHHHH", 1, gso, 0, 1100, len(packet) - 2520, 16) + packet)

nonce = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
welcome = {
    "gateway": "g", "device": "d", "ipv4": "100.77.3.9", "ipv6": "fd4e::9", "gateway_ipv4": "100.77.3.1",
    "gateway_ipv6": None, "networks": ["100.77.3.0/24"], "routes": ["0.0.0.0/0", "::/0"], "seen_as": "192.0.2.1:4000",
    "certificate_until": 1, "rechallenge_seconds": 60,
}
messages = [
    {"type": "hello", "version": 1, "client": "c", "platform": "p"},
    {"type": "challenge_answer", "nonce": nonce, "signature": ""},
    {"type": "renew", "csr": nonce},
    {"type": "path", "mtu_bytes": 1400},
    {"type": "goodbye"},
    {"type": "goodbye", "reason": "shutdown"},
    {"type": "welcome", **welcome},
    {"type": "reconfigure", **welcome},
    {"type": "refused", "code": 34, "reason": "no", "retry_after_seconds": 5},
    {"type": "challenge", "nonce": nonce, "server_nonce": nonce},
    {"type": "certificate", "chain": [nonce]},
    {"type": "unsupported", "what": "dance"},
    {"type": "dance"},
    {"type": "proof", "hmac": nonce},
    {"type": "begin", "version": 1, "invitation": "0" * 16, "client_nonce": nonce, "csr": nonce, "device_name": "d", "platform": "p"},
    {"type": "enrolled", "device_id": "0" * 32, "device_name": "d", "user": "u", "chain": [nonce], "gateway": "g",
     "endpoints": ["g:443"], "server_name": "g", "proof": nonce},
]
for number, message in enumerate(messages):
    text = json.dumps(message).encode()
    seed("control", f"message-{number}", text)
    seed("control", f"frame-{number}", b"\x07" + struct.pack(">I", len(text)) + text)
seed("control", "oversized", b"\x01\xff\xff\xff\xff")
