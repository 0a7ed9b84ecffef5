"""Flower's SuperNode with a pin: no bundle is unpacked whose SHA-256 the holder has not pinned.

Whoever may start a run at the coordinator ships the code that a SuperNode executes. Flower 1.41 can
check a signature of its hosted hub, and nothing with a SuperLink of one's own; so the place where
it would is taken over here. A bundle whose bytes do not have a pinned sum is replaced by nothing
(no bytes of it are stored, unpacked or read) and each of its messages is answered with an error of
the reason ``bundle.not-pinned``.

How each call to the coordinator went is told to the gateway, by a public function of httpx.

Three private names of ``flwr.supernode.start_client_internal`` are leant on; ``check_flower``
refuses to start where a newer Flower no longer uses them in the way they are meant here.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from email.utils import parsedate_to_datetime
from hashlib import sha256
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpx
from flwr.app import Error
from flwr.common.constant import ErrorCode
from flwr.supercore.fab import Fab
from flwr.supernode import start_client_internal as start

from ...common.errors import ConfideError
from ...common.machine.processes import end_with_parent, keep_memory_private
from .connection import CONNECTED

REFUSED = "bundle.not-pinned"
PINS = "CONFIDE_BUNDLES"  # the sums, spaces between; set by ``gateway``, as is
WORDS = "CONFIDE_WORDS"  # the number of the open file that hears how the connection is
_MOST_APART = 240.0  # seconds between the clocks; Flower allows some minutes
_HUNG_UP = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)  # by a server that ends
_DIGEST = re.compile(r"[0-9a-f]{64}")

logger = logging.getLogger("flwr")  # whose lines the gateway's are among


def main() -> None:
    """``python -m confide.client.site.supernode`` with Flower's own arguments for a SuperNode."""
    from flwr.supernode.cli import flower_supernode

    keep_memory_private()  # from the bundle, which runs as the same user
    end_with_parent()
    pin(frozenset(os.environ.pop(PINS, "").split()))
    words = os.environ.pop(WORDS, "")
    if words:
        tell_of_calls(_writer(int(words)))
    try:
        flower_supernode()
    finally:
        # Flower comes back here when it lost the coordinator, and leaves a server's thread behind
        # that would keep a process without work alive for ever.
        sys.stderr.flush()
        os._exit(1)


def pin(bundles: frozenset[str]) -> None:
    """From now on this process runs these bundles and no others; an empty set allows none.

    Raises:
        ConfideError: ``gateway.flower`` or ``gateway.pin``.
    """
    check_flower()
    wrong = [digest for digest in bundles if not _DIGEST.fullmatch(digest)]
    if wrong:
        raise ConfideError("gateway.pin", f"{wrong[0]!r:.100} is not a SHA-256.")
    pull = start._pull_and_store_message

    def pinned_pull(**given: Any) -> int | None:
        """Flower's own, but that each bundle is seen by us first, and none passes unverified."""
        mine = {
            "get_fab": pinned(bundles, given["get_fab"]),
            "trusted_entities": {"this holder's pin": ""},
        }
        return pull(**{**given, **mine})

    start._pull_and_store_message = pinned_pull  # type: ignore[assignment]
    start._verify_fab = lambda fab, trusted_entities: is_pinned(fab, bundles)
    start.FAB_VERIFICATION_ERROR = Error(ErrorCode.INVALID_FAB, REFUSED)


def pinned(
    bundles: frozenset[str], get_fab: Callable[[str, int], Fab]
) -> Callable[[str, int], Fab]:
    """``get_fab``, whose bundle comes without a byte unless its own sum is a pinned one.

    What the coordinator says of the sum is not used. A bundle without ``valid_license`` is one that
    Flower refuses when it has trusted entities; the word marks ours as one to look at.
    """

    def get(digest: str, run: int) -> Fab:
        fab = get_fab(digest, run)
        found = sha256(fab.content).hexdigest()
        if found not in bundles or found != digest:
            logger.error("refused [%s] a bundle of SHA-256 %s", REFUSED, found)
            return Fab(found, b"", {})
        return Fab(found, fab.content, {"valid_license": "pinned"})

    return get


def is_pinned(fab: Fab, bundles: frozenset[str]) -> bool:
    """The same question once more, where Flower asks it."""
    return sha256(fab.content).hexdigest() in bundles


def tell_of_calls(tell: Callable[[str], None]) -> None:
    """From now on ``tell`` hears of each call to the coordinator how it went, as a code of
    ``connection``. Flower itself says it to nobody: of what it tries again it logs that alone."""
    send = httpx.Client.send

    def told(self: httpx.Client, request: httpx.Request, **given: Any) -> httpx.Response:
        try:
            response = send(self, request, **given)
        except httpx.TransportError as error:
            tell(code_of_failure(error, request.url.host))
            raise
        tell(code_of_answer(response))
        return response

    httpx.Client.send = told  # type: ignore[method-assign]


def code_of_failure(error: BaseException, host: str) -> str:
    """Why no answer came from a host."""
    causes = list(_causes(error))
    if any(isinstance(cause, ssl.SSLError) and not isinstance(cause, _HUNG_UP) for cause in causes):
        return "connection.certificate"
    if any(isinstance(cause, httpx.ProxyError) for cause in causes) or _by_proxy(host):
        return "connection.proxy"
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return "connection.name"
    return "connection.no-answer"


def code_of_answer(response: httpx.Response) -> str:
    """What an answer says of the connection; one about a run that is over is as good as any."""
    status = response.status_code
    if status == httpx.codes.UNAUTHORIZED:
        return "connection.clock" if _clocks_differ(response) else "connection.key"
    activation = response.request.url.path.endswith("/activate-node")
    if status >= httpx.codes.INTERNAL_SERVER_ERROR or (activation and response.is_error):
        return "connection.coordinator"
    return CONNECTED


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _by_proxy(host: str) -> bool:
    """Whether the environment has a proxy for it."""
    proxies = getproxies()
    return bool(proxies.get("https") or proxies.get("all")) and not proxy_bypass(host)


def _clocks_differ(response: httpx.Response) -> bool:
    try:
        theirs = parsedate_to_datetime(response.headers.get("date", "")).timestamp()
    except (TypeError, ValueError):
        return False
    return abs(theirs - time.time()) > _MOST_APART


def _writer(number: int) -> Callable[[str], None]:
    """Writes a line for each word; one that nobody takes is dropped, the next one says the same."""
    os.set_inheritable(number, False)
    os.set_blocking(number, False)

    def write(code: str) -> None:
        with suppress(OSError):
            os.write(number, f"{code}\n".encode("ascii"))

    return write


def check_flower() -> None:
    """Refuse a Flower in which the pin would hold nothing.

    Raises:
        ConfideError: ``gateway.flower``.
    """
    pull = getattr(start, "_pull_and_store_message", None)
    found = (
        callable(pull)
        and {"get_fab", "trusted_entities"} <= set(inspect.signature(pull).parameters)
        and callable(getattr(start, "_verify_fab", None))
        and {"_verify_fab", "FAB_VERIFICATION_ERROR"} <= set(pull.__code__.co_names)
        and "_pull_and_store_message" in start.start_client_internal.__code__.co_names
    )
    if not found:
        raise ConfideError(
            "gateway.flower",
            "This version of Flower asks for the check of a bundle in another way.",
            "Install the version of flwr that constraints.txt names.",
        )


if __name__ == "__main__":
    main()
