"""What is wrong with an address, a certificate or a key is told in a sentence before anything is started."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install fibecfed[flower], or make test-flower")

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from rich.console import Console
from typer.testing import CliRunner

from fibecfed.cli import app
from fibecfed.core.errors import UserError
from fibecfed.deploy import client, supernode
from fibecfed.deploy.superlink import SuperLink, checked, expires_soon, expiry

pytestmark = pytest.mark.flower

DAY = 86400.0
HERE = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]


def certificate(folder: Path, days: float, names: list[x509.GeneralName] = HERE, since: float = 30.0) -> tuple[Path, Path]:
    """A certificate that signs itself, valid for so many days from now, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    now, name = datetime.datetime.now(datetime.UTC), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=since))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, private = folder / "server.crt", folder / "server.key"
    pem.write_bytes(made.public_bytes(Encoding.PEM))
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return pem, private


@contextlib.contextmanager
def answering(context: ssl.SSLContext | None) -> Iterator[str]:
    """The address of a server that takes connections until the end of the block; without a context, in plain HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with contextlib.suppress(OSError), connection:
                        if context is None:
                            connection.recv(100)
                            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                        else:
                            context.wrap_socket(connection, server_side=True).close()

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def key(folder: Path, *options: str) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-C", "", "-N", "", *options, "-f", folder / "client"], check=True)
    return folder / "client"


def tls(pem: Path, private: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, private)
    return context


def test_the_end_of_a_good_certificate_is_known_and_told_if_it_is_near(tmp_path: Path) -> None:
    pem, private = certificate(tmp_path, 5.0)
    with answering(tls(pem, private)) as address:
        end, away = expiry(SuperLink(address, pem, None, False))
    assert away is None and end is not None and abs(end - time.time() - 5 * DAY) < 60
    assert "expires in 5 days" in (expires_soon(end, time.time()) or "")
    assert expires_soon(end, end - 15 * DAY) is None and expires_soon(None, 0.0) is None


@pytest.mark.parametrize(
    ("days", "since", "names", "sentence"),
    [
        (-1.0, 30.0, HERE, "has expired on 20"),
        (5.0, -1.0, HERE, "is not valid yet; compare the clocks"),
        (5.0, 30.0, [x509.DNSName("server.example")], "is not for the name '127.0.0.1'"),
    ],
)
def test_a_certificate_that_cannot_be_trusted_is_told(
    tmp_path: Path, days: float, since: float, names: list[x509.GeneralName], sentence: str
) -> None:
    pem, private = certificate(tmp_path, days, names, since)
    with answering(tls(pem, private)) as address, pytest.raises(UserError) as error:
        expiry(SuperLink(address, pem, None, False))
    assert sentence in str(error.value) and "Nothing was sent" in str(error.value)


def test_a_certificate_of_another_authority_is_told(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other, _ = certificate(tmp_path / "other", 5.0)
    pem, private = certificate(tmp_path, 5.0)
    with answering(tls(pem, private)) as address:
        with pytest.raises(UserError, match=r"is not signed by .*other/server.crt"):
            expiry(SuperLink(address, other, None, False))
        with pytest.raises(UserError, match="give --root-certificates"):
            expiry(SuperLink(address, None, None, False))


def test_a_server_in_plain_http_is_refused_unless_this_machine_allows_it(tmp_path: Path) -> None:
    pem, _ = certificate(tmp_path, 5.0)
    with answering(None) as address:
        with pytest.raises(UserError, match=r"does not answer in TLS .* the server cannot allow that for this machine"):
            expiry(SuperLink(address, pem, None, False))
        assert expiry(SuperLink(address, None, None, True)) == (None, None)


def test_a_server_that_is_away_is_no_mistake(tmp_path: Path) -> None:
    pem, _ = certificate(tmp_path, 5.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    assert expiry(SuperLink(address, pem, None, False)) == (None, "Connection refused")


@pytest.mark.parametrize("address", ["server", "https://server:8000", "server:0", "server:70000", "a b:1", ":8000", "[::1"])
def test_an_address_that_is_none_is_told(address: str) -> None:
    with pytest.raises(UserError, match=r"--superlink: got .*, expected HOST:PORT"):
        checked(SuperLink(address, None, None, True))


def test_keys_and_certificates_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    good = key(tmp_path, "-t", "ecdsa", "-b", "384")
    pem, _ = certificate(tmp_path, 5.0)
    checked(SuperLink("server.example:8000", pem, good, False))
    checked(SuperLink("[::1]:8000", None, good, False))
    checked(SuperLink("server.example:8000", None, None, True))
    folders = {}
    for name in ("old", "rsa", "locked", "empty"):
        folders[name] = tmp_path / name
        folders[name].mkdir()
    expired, _ = certificate(folders["old"], -1.0)
    (folders["empty"] / "ca.crt").write_text("nothing")
    cases = [
        (pem, None, "--key: not given, and the server admits only keys that it knows; make one, ssh-keygen"),
        (pem, tmp_path / "absent", "--key: .*absent cannot be read .*; make one"),
        (pem, tmp_path / "client.pub", "--key: .*client.pub is a public key; give the private one"),
        (pem, pem, "--key: .* is no private key of OpenSSH"),
        (pem, key(folders["rsa"], "-t", "ed25519"), "--key: .* is a key of type Ed25519, and Flower expects ECDSA"),
        (pem, key(folders["locked"], "-t", "ecdsa", "-N", "secret"), "--key: .* is protected with a passphrase"),
        (tmp_path / "absent.crt", good, "--root-certificates: .*absent.crt cannot be read"),
        (folders["empty"] / "ca.crt", good, "--root-certificates: .* holds no certificate in PEM"),
        (expired, good, r"--root-certificates: .* expired on \d{4}-\d\d-\d\d; ask the server's operator"),
    ]
    for root, private, sentence in cases:
        with pytest.raises(UserError, match=sentence):
            checked(SuperLink("server.example:8000", root, private, False))
    with pytest.raises(UserError, match="--allow-plain-http: got --root-certificates or --key beside it"):
        checked(SuperLink("server.example:8000", pem, good, True))


def test_options_of_the_connection_without_an_address_are_a_mistake(tmp_path: Path) -> None:
    for option in (["--key", "k"], ["--root-certificates", "c"], ["--allow-plain-http"]):
        done = CliRunner().invoke(app, ["client", "--config", "f.toml", "--data", "d.csv", *option])
        assert done.exit_code == 2 and f"{option[0]}: got it without --superlink HOST:PORT" in done.stderr


def test_what_flower_is_told_of_the_client() -> None:
    assert supernode.node_config(Path("/a b/c.sock"), False) == 'socket="/a b/c.sock"'
    assert supernode.node_config(Path("/c.sock"), True) == 'socket="/c.sock" allow-plain-http=true'
    with pytest.raises(UserError, match="--socket: got"):
        supernode.node_config(Path('/a"b.sock'), False)


def test_a_clients_check_looks_at_the_connection_before_data_and_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SimpleNamespace(federation=SimpleNamespace(client_names=None), privacy=SimpleNamespace(helped=False))
    monkeypatch.setattr(client, "federation_config", lambda options: config)
    monkeypatch.setattr(client, "_check_key", lambda *words: None)
    context = tls(*certificate(tmp_path, 5.0, HERE))
    other, _ = certificate(tmp_path, 5.0)  # in place of the first
    with answering(context) as address:
        link = SuperLink(address, other, key(tmp_path, "-t", "ecdsa"), False)
        options = client.ClientArguments(tmp_path / "f.toml", (), tmp_path / "c.sock", tmp_path, "a", link)
        with pytest.raises(UserError, match="--superlink: the certificate of"):
            client.try_out(options, Console())
