"""A coordinator on the loopback with TLS and node authentication, and kits for its holders."""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from confide.client.site.users import may_read, user_named
from confide.common.machine.kit import Kit, read_kit

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(sys.executable).parent
PEM = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What the condition returns once it is true; fails the test if it never is."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return found


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey, *, ca: bool
) -> bytes:
    now = dt.datetime.now(dt.UTC)
    issuer = signer.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name("test CA"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(hours=2))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if not ca:
        places = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = builder.add_extension(x509.SubjectAlternativeName(places), critical=False)
    return builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM)


@dataclass
class Coordinator:
    """A SuperLink of this test's own, with everything that belongs to it in one folder."""

    folder: Path
    port: int
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    nodes: dict[Path, int] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        return os.environ | {
            "FLWR_HOME": str(self.folder / "flwr"),
            "PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }

    def start(self) -> None:
        signer, own = (
            ec.generate_private_key(ec.SECP384R1()),
            ec.generate_private_key(ec.SECP384R1()),
        )
        (self.folder / "ca.crt").write_bytes(_certificate("test CA", signer, signer, ca=True))
        (self.folder / "server.crt").write_bytes(_certificate("localhost", own, signer, ca=False))
        (self.folder / "server.key").write_bytes(own.private_bytes(*PEM))
        (self.folder / "flwr").mkdir()
        (self.folder / "flwr" / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{self.port}"\n'
            f'root-certificates = "{self.folder / "ca.crt"}"\n'
        )
        command = ["flower-superlink", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--enable-supernode-auth", "--disable-runtime-dependency-installation"]
        for option, name in (("cert", "server.crt"), ("key", "server.key"), ("ca-cert", "ca.crt")):
            command += [f"--ssl-{option}file", str(self.folder / name)]
        with (self.folder / "superlink.log").open("wb") as log:
            self.processes.append(
                subprocess.Popen(
                    command, env=self.env, stdout=log, stderr=log, start_new_session=True
                )
            )
        wait_for(self.answers)

    def answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def flwr(self, *arguments: str, seconds: float = 60.0) -> str:
        done = subprocess.run(
            ["flwr", *arguments],
            env=self.env,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def kit(self, name: str, *bundles: str) -> Kit:
        """A new holder's kit, whose key is registered here."""
        folder = self.folder / name
        folder.mkdir()
        key = ec.generate_private_key(ec.SECP384R1())
        (folder / "ca.crt").write_bytes((self.folder / "ca.crt").read_bytes())
        (folder / "node.key").touch(mode=0o600)
        (folder / "node.key").write_bytes(key.private_bytes(*PEM))
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        (folder / "node.pub").write_bytes(public)
        pins = ", ".join(f'"{digest}"' for digest in bundles)
        (folder / "kit.toml").write_text(
            f'schema = "confide-kit/1"\nname = "{name}"\ncoordinator = "localhost"\n'
            f'fleet = "127.0.0.1:{self.port}"\nbundles = [{pins}]\nexpires = "2999-01-01"\n'
        )
        said = self.flwr("supernode", "register", str(folder / "node.pub"), "here")
        (node,) = re.findall(r"\d{10,}", said)
        self.nodes[folder / "node.pub"] = int(node)
        return read_kit(folder)

    def shut_out(self, public: Path) -> None:
        """As a coordinator revokes a key."""
        self.flwr("supernode", "unregister", str(self.nodes[public]), "here")

    def stop(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                pass
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    made = Coordinator(tmp_path_factory.mktemp("coordinator"), free_port())
    try:
        made.start()
        yield made
    finally:
        made.stop()


def write_bundle(folder: Path, client: str, server: str, config: Mapping[str, str]) -> Path:
    """An app of one package, ``probe``, from the source of its two halves."""
    (folder / "probe").mkdir(parents=True)
    (folder / "probe" / "__init__.py").touch()
    (folder / "probe" / "server.py").write_text(server)
    (folder / "probe" / "client.py").write_text(client)
    values = "".join(f'{key} = "{value}"\n' for key, value in config.items())
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "probe"\nversion = "1.0.0"\ndescription = ""\nlicense = "Apache-2.0"\n'
        '[tool.flwr.app]\npublisher = "test"\nfab-format-version = 0\n'
        'fab-include = ["/probe/*.py"]\n'
        '[tool.flwr.app.components]\nserverapp = "probe.server:app"\n'
        f'clientapp = "probe.client:app"\n[tool.flwr.app.config]\n{values}'
    )
    return folder


def tools_for_everybody(folder: Path) -> Path | None:
    """A Python and Flower's commands that any user can run, or None where there are none: the one
    of the tests may lie in root's home."""
    packages = sysconfig.get_paths()["purelib"]
    python = shutil.which(f"python3.{sys.version_info.minor}", path="/usr/local/bin:/usr/bin")
    nobody = user_named("nobody")
    wanted = [ROOT / "confide" / "__init__.py", Path(packages) / "flwr" / "__init__.py"]
    if python is None or not all(may_read(nobody, p) for p in [Path(python).resolve(), *wanted]):
        return None
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(python)
    for name, module in (
        ("flower-superexec", "flwr.supercore.cli"),
        ("flwr-clientapp", "flwr.supernode.cli"),
    ):
        call = name.replace("-", "_")
        (folder / "bin" / name).write_text(
            f"#!{folder}/bin/python\nfrom {module} import {call}\n{call}()\n"
        )
        (folder / "bin" / name).chmod(0o755)
    return folder / "bin" / "python"
