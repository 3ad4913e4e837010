"""A name server that answers every question with an empty answer, for tests that ask whether one answers.

    names.py ADDRESS
"""
import socket
import sys

server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((sys.argv[1], 53))
while True:
    question, client = server.recvfrom(512)
    # RFC 1035 section 4.1.1: QR set, everything else as asked.
    server.sendto(question[:2] + bytes([question[2] | 0x80]) + question[3:], client)
