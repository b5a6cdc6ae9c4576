"""A small web application: one page that greets and tells the time somewhere."""

import os
import platform
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from zoneinfo import ZoneInfo

GREETING = os.environ.get("GREETING", "Hello")
PLACE = os.environ.get("PLACE", "Etc/UTC")
BUILT = Path(__file__).with_name("built.txt").read_text().strip()


class Page(BaseHTTPRequestHandler):
    """GET / answers with one line of text."""

    def do_GET(self) -> None:
        now = datetime.now(ZoneInfo(PLACE)).strftime("%H:%M")
        body = f"{GREETING} from {platform.node()}, where it is {now} in {PLACE} ({BUILT})\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    print("listening on port 5000", flush=True)
    ThreadingHTTPServer(("0.0.0.0", 5000), Page).serve_forever()
