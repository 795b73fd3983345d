"""Proxies of Debian before a service, as an operator would set them up."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.running import wait_until
from tests.system import program

NGINX = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes 1;
events {{ worker_connections 256; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{ listen 127.0.0.1:{port}; {server} }}
}}
"""
HAPROXY = """
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
frontend all
  bind 127.0.0.1:{port}
  default_backend api
backend api
  {backend}
"""


@contextmanager
def nginx(folder: Path, server: str) -> Iterator[str]:
    """The URL of an nginx with these lines in its server block."""
    port = _free_port()
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, port=port, server=server))
    with _running([program("nginx"), "-c", str(config), "-e", str(folder / "error.log")], port):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def haproxy(folder: Path, backend: str) -> Iterator[str]:
    """The URL of a HAProxy with these lines in its back end."""
    port = _free_port()
    config = folder / "haproxy.cfg"
    config.write_text(HAPROXY.format(port=port, backend=backend))
    with _running([program("haproxy"), "-db", "-f", str(config)], port):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _running(command: list[str], port: int) -> Iterator[None]:
    process = subprocess.Popen(command)
    try:
        wait_until(lambda: process.poll() is not None or _listens(port), command[0])
        assert process.poll() is None, command
        yield
    finally:
        process.terminate()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
