"""A Sentry on loopback: it keeps the events that it is sent."""

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Event = dict[str, Any]

events: dict[str, list[Event]] = {"event": [], "transaction": []}


class Envelopes(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Content-Encoding"] == "gzip":
            body = gzip.decompress(body)
        _, _, rest = body.partition(b"\n")
        while rest.strip():
            line, _, rest = rest.partition(b"\n")
            header = json.loads(line)
            length = header.get("length", rest.find(b"\n"))
            payload, rest = rest[:length], rest[length + 1 :]
            if header["type"] in events:
                events[header["type"]].append(json.loads(payload))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: Any) -> None:
        pass


def start() -> str:
    """Give the DSN of a server that runs until the process ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Envelopes)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://key@127.0.0.1:{server.server_port}/1"
