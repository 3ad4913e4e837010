"""Sees what leaves an interface, and names what should not.

usage: sniff.py INTERFACE GATEWAY_PORT ADDRESS...

Prints a line for each outgoing packet that is not one of: ARP, neighbour discovery and its multicast reports,
DHCP, and UDP to GATEWAY_PORT of one of the gateway's ADDRESSes. A line says protocol, destination and port.
"""

import ipaddress
import socket
import struct
import sys

OUTGOING = 4  # PACKET_OUTGOING, packet(7)
ETH_P_ALL = 3
DISCOVERY = {130, 131, 132, 133, 134, 135, 136, 143}  # RFC 4861, RFC 2710, RFC 3810


def main(interface, port, gateways):
    sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
    sniffer.bind((interface, ETH_P_ALL))
    print("ready", flush=True)
    while True:
        packet, (_, ethertype, kind, _, _) = sniffer.recvfrom(65536)
        if kind == OUTGOING and (seen := judge(ethertype, packet, port, gateways)):
            print(seen, flush=True)


def judge(ethertype, packet, port, gateways):
    if ethertype == 0x0806:
        return None
    if ethertype == 0x0800:
        protocol, destination = packet[9], ipaddress.ip_address(packet[16:20])
        rest = packet[(packet[0] & 15) * 4 :]
    elif ethertype == 0x86DD:
        protocol, destination, rest = packet[6], ipaddress.ip_address(packet[24:40]), packet[40:]
        if protocol == 0:  # hop-by-hop options, as multicast reports have
            protocol, rest = rest[0], rest[(rest[1] + 1) * 8 :]
    else:
        return f"ethertype {ethertype:#06x}"
    if protocol in (6, 17):
        source, target = struct.unpack("!HH", rest[:4])
        if protocol == 17 and (target == port and str(destination) in gateways or (source, target) in ((68, 67), (546, 547))):
            return None
        return f"{'tcp' if protocol == 6 else 'udp'} {destination} {target}"
    if protocol == 58 and rest[0] in DISCOVERY:
        return None
    return f"protocol {protocol} {destination}"


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), set(sys.argv[3:]))
