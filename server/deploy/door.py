"""The door: nginx in front of the SuperLink, so that holders reach Flower's fleet calls and nothing
else. Its configuration is written from here; nginx itself is the system's package.

Control and runtime, with which one starts runs and takes tasks, share the SuperLink's port on the
loopback; no path of theirs leads through the door. Registering a node does not either: keys are
registered by the coordinator. Each call has an address of its own, compared whole and passed on as
written here, so that no spelling of a path ("..", "%2e") means another one behind the door.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from ...common.machine.paths import write_public
from ...common.machine.processes import can_bind as _is_there
from .federation import Federation

# The calls of a SuperNode of Flower 1.41, all POST. Not among them: register-node, unregister-node.
CALLS = (
    "activate-node",
    "deactivate-node",
    "send-node-heartbeat",
    "pull-messages",
    "push-messages",
    "get-run",
    "get-fab",
    "push-object",
    "pull-object",
    "confirm-message-received",
)
# Flower cuts an array into pieces of 5 MiB; one call carries one of them.
_MOST_BODY = "16m"

_CONFIG = """# Written by confide from federation.toml; changes are lost.
{user}worker_processes 1;
daemon off;
pid {place}/nginx.pid;
error_log {logs}/door-error.log warn;
events {{ worker_connections 1024; }}
http {{
    # Who called what, how much and with which outcome; no header and no body is ever written.
    log_format calls escape=json '{{"time":"$time_iso8601","from":"$remote_addr",'
        '"method":"$request_method","path":"$uri","status":$status,"in":$request_length,'
        '"out":$bytes_sent,"seconds":$request_time}}';
    access_log {logs}/door.jsonl calls;
    server_tokens off;
    default_type application/octet-stream;
    client_body_temp_path {place}/tmp/body;
    proxy_temp_path {place}/tmp/proxy;
    fastcgi_temp_path {place}/tmp/fastcgi;
    uwsgi_temp_path {place}/tmp/uwsgi;
    scgi_temp_path {place}/tmp/scgi;
    client_max_body_size {body};
    client_header_timeout 10s;
    client_body_timeout 60s;
    send_timeout 60s;
    keepalive_timeout 75s;
    upstream superlink {{ server {superlink}; keepalive 16; }}
    server {{
{listening}
        ssl_certificate {place}/server.crt;
        ssl_certificate_key {place}/server.key;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_tickets off;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $host;
        proxy_read_timeout 300s;
        proxy_ssl_verify on;
        proxy_ssl_trusted_certificate {ca};
        proxy_ssl_name localhost;
        proxy_ssl_session_reuse on;
        if ($request_method != POST) {{ return 403; }}
        location / {{ return 403; }}
{locations}
    }}
}}
"""
_LOCATION = (
    "        location = /v1/fleet/{call} {{ proxy_pass https://superlink/v1/fleet/{call}; }}"
)


def configuration(federation: Federation) -> str:
    """The whole nginx.conf."""
    return _CONFIG.format(
        # Started by root, as in a container's test, nginx would give its workers to "nobody", who
        # cannot enter the federation's folder. Anybody else keeps the worker's own user.
        user="user root;\n" if os.geteuid() == 0 else "",
        place=federation.folder / "door",
        logs=federation.logs,
        superlink=federation.superlink,
        listening="\n".join(
            f"        listen {place}:{federation.port} ssl;" for place in _places()
        ),
        ca=federation.ca,
        body=_MOST_BODY,
        locations="\n".join(_LOCATION.format(call=call) for call in CALLS),
    )


def _places() -> list[str]:
    """Where there is something to listen on: a machine may have either protocol switched off, and
    nginx would not start (docker-nginx-unprivileged#35)."""
    every = ((socket.AF_INET, "0.0.0.0", "*"), (socket.AF_INET6, "::", "[::]"))  # noqa: S104
    return [place for family, address, place in every if _is_there(family, address)] or ["*"]


def write_door(federation: Federation) -> Path:
    """Write nginx.conf and the folders that it names; returns its path."""
    path = federation.folder / "door" / "nginx.conf"
    (federation.folder / "door" / "tmp").mkdir(mode=0o700, parents=True, exist_ok=True)
    federation.logs.mkdir(mode=0o700, exist_ok=True)
    write_public(path, configuration(federation).encode())
    return path


def door_command(federation: Federation, nginx: str) -> list[str]:
    """The door as a child that stays in the foreground."""
    door = federation.folder / "door"
    return [nginx, "-p", str(door), "-c", str(door / "nginx.conf"), "-e", "stderr"]
