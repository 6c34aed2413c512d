"""A stand-in for vLLM and llama.cpp: a small HTTP server as a process of its own."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from prefine.engines.process import Command

_SCRIPT = r"""
import http.server, os, signal, subprocess, sys, time
options = dict(option.split("=", 1) for option in sys.argv[2:])
print("loading weights", flush=True)
if "die" in options:
    print("no memory: \x1b[31mred", flush=True)
    sys.exit(int(options["die"]))
def ended(number, frame):
    print("got SIGTERM", flush=True)
    if "deaf" not in options:
        os._exit(0)
signal.signal(signal.SIGTERM, ended)
if "child" in options:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code])
    print("child", child.pid, flush=True)
ready = time.monotonic() + float(options.get("loading", 0))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        code = 200 if time.monotonic() >= ready else 503
        if code == 503:
            print("503 while loading", flush=True)
        self.send_response(code)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *arguments):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def fake_engine(port: int, **options: str) -> Command:
    """A server on this port.

    Args:
        options: loading=SECONDS until it is ready; die=CODE at once; child=yes starts a process that ignores SIGTERM;
            deaf=yes ignores SIGTERM itself.
    """
    given = [f"{name}={value}" for name, value in options.items()]
    return Command("fake", [sys.executable, "-I", "-c", _SCRIPT, str(port), *given])


def fake_program(folder: Path, name: str) -> Path:
    """An executable that serves on the port after its --port argument, whatever its other arguments."""
    path = folder / name
    body = "import sys\nsys.argv = ['fake', sys.argv[sys.argv.index('--port') + 1]]\n"
    path.write_text(f"#!{sys.executable} -I\n{body}{_SCRIPT}")
    path.chmod(0o755)
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
