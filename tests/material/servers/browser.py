"""Show a page in a real browser: serve it on loopback beside a script that watches it and reports back."""

from __future__ import annotations

import http.server
import shutil
import subprocess
import threading
from pathlib import Path

BROWSERS = [name for name in ("chromium", "google-chrome") if shutil.which(name)]


def seen_by(browser: str, page: bytes, script: str, profile: Path, seconds: float = 60) -> str:
    """Show a page in a frame of 1280 x 9000; return the text that the script passes to `say`, empty if it says nothing.

    The script runs when the page is loaded; `page` is the page's window. It may `await`.
    """
    watch = f"""<iframe src="/report.html" width="1280" height="9000"></iframe><script>
const say = text => fetch("/said", {{method: "POST", body: String(text)}});
const until = async test => {{ while (!test()) await new Promise(done => setTimeout(done, 50)); }};
onload = async () => {{ const page = frames[0]; {script} }};
</script>"""
    answers = {"/": watch.encode(), "/report.html": page}
    said, heard = [], threading.Event()

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(answers.get(self.path))

        def do_POST(self) -> None:
            said.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            heard.set()
            self.answer(b"")

        def answer(self, body: bytes | None) -> None:
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        quiet = "--headless --no-sandbox --disable-gpu --disable-background-networking --no-first-run --disable-sync"
        own = [f"--user-data-dir={profile}", "--disable-component-update", "--remote-debugging-port=0"]
        command = [browser, *quiet.split(), *own, f"http://127.0.0.1:{server.server_port}/"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            heard.wait(seconds)
        finally:
            process.terminate()
            process.wait(30)
            server.shutdown()
    return said[0] if said else ""
