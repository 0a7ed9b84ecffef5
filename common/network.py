"""How programs of one machine reach each other, whatever proxies its environment names."""

from __future__ import annotations

from collections.abc import Mapping

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Programs disagree on the case of these names, and gRPC has one of its own.
PROXIES = (
    "https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY",
    "grpc_proxy", "no_proxy", "NO_PROXY", "no_grpc_proxy",
)  # fmt: skip


def past_proxies(env: Mapping[str, str]) -> dict[str, str]:
    """The variables that say who is reached without a proxy: whoever was, in either case of their
    name, and this machine."""
    named = [env.get(name, "") for name in ("no_proxy", "NO_PROXY")]
    known = [host.strip() for text in named for host in text.split(",")]
    reached = ",".join(dict.fromkeys([*filter(None, known), *LOOPBACK]))
    found = {"no_proxy": reached, "NO_PROXY": reached}
    if "no_grpc_proxy" in env:  # which gRPC looks at first
        found["no_grpc_proxy"] = ",".join(filter(None, [env["no_grpc_proxy"], reached]))
    return found
