"""The loopback is reached past every proxy (slime#757, verl#1120)."""

from __future__ import annotations

import pytest

from confide.common.network import LOOPBACK, past_proxies


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"no_proxy": "intranet.example, 10.0.0.1"},
        {"NO_PROXY": "intranet.example,10.0.0.1"},
        {"no_proxy": "", "NO_PROXY": "intranet.example,,10.0.0.1,"},
    ],
)
def test_whoever_was_reached_without_a_proxy_still_is_and_this_machine_too(
    env: dict[str, str],
) -> None:
    found = past_proxies(env)
    assert found["no_proxy"] == found["NO_PROXY"]
    hosts = found["no_proxy"].split(",")
    assert hosts[-len(LOOPBACK) :] == list(LOOPBACK)
    assert hosts[: -len(LOOPBACK)] == (
        ["intranet.example", "10.0.0.1"] if any(env.values()) else []
    )
    assert "no_grpc_proxy" not in found


def test_grpcs_own_variable_keeps_what_it_says() -> None:
    assert past_proxies({"no_grpc_proxy": "a"})["no_grpc_proxy"] == f"a,{','.join(LOOPBACK)}"
