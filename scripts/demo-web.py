"""The internet side of scripts/demo: a page that says who asks, and one file to download.

usage: demo-web.py FILE. Listens on port 80, IPv4 and IPv6.
"""

import os
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FILE = sys.argv[1]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/download":
            with open(FILE, "rb") as file:
                self.answer(os.fstat(file.fileno()).st_size, "application/octet-stream")
                self.connection.sendfile(file)
        else:
            address = self.client_address[0].removeprefix("::ffff:")
            page = f"{address}\n".encode()
            self.answer(len(page), "text/plain")
            self.wfile.write(page)

    def answer(self, length, kind):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.flush()


class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6

    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


Server(("::", 80), Handler).serve_forever()
