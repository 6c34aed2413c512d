"""Runs the application of `prefine serve`."""

from __future__ import annotations

import socket
from collections.abc import Callable

from fastapi import FastAPI

from prefine.serving.service import Service
from prefine.web.server import run_app


def run_server(app: FastAPI, service: Service, sock: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM. Then new requests are refused, and running ones have time to end.

    Args:
        ready: called when requests are answered.
    """
    timeout = service.limits.shutdown_timeout_s
    run_app(app, sock, ready, stopping=lambda: service.worker.inbox.begin_stop(timeout), timeout_s=timeout)
