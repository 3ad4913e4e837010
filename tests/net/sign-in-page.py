"""A network's sign-in page for tests: sends every visitor of its address to another one.

    sign-in-page.py ADDRESS LOCATION       answers 302 at port 80
    sign-in-page.py ADDRESS                answers 200 with "please sign in" there
"""

import http.server
import socketserver
import sys


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if len(sys.argv) > 2:
            self.send_response(302)
            self.send_header("Location", sys.argv[2])
            self.end_headers()
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"please sign in\n")

    def log_message(self, *_):
        pass


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True


Server((sys.argv[1], 80), Page).serve_forever()
