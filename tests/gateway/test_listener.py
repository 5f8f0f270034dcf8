"""The listener: both families of addresses, TLS by a mounted Secret, browsers of other origins."""

import asyncio
import datetime
import os
import socket
import ssl
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.support.gateway import chat_body, document_of, running_gateway
from tests.support.hosted_answers import hosted_api
from tests.support.routing import SOUND

from flotilla.errors import InvalidSpec
from flotilla.gateway import app
from flotilla.gateway.app import Certificate
from flotilla.gateway.http.server import open_socket


def write_certificate(folder: Path, name: str) -> None:
    """A certificate for localhost that its own key has signed, as a Secret is mounted."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
    builder = builder.not_valid_after(now + datetime.timedelta(days=1))
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    certificate = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    (folder / "tls.crt").write_bytes(certificate.public_bytes(pem))
    (folder / "tls.key").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))


def name_of_server(port: int) -> str:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port)) as raw, context.wrap_socket(raw) as secure:
        der = secure.getpeercert(binary_form=True)
    assert der is not None
    return str(x509.load_der_x509_certificate(der).subject.rfc4514_string())


@pytest.mark.parametrize("host", ["", "::"])
def test_all_addresses_are_those_of_both_families(host: str) -> None:
    with open_socket(host, 0) as listening:
        port = listening.getsockname()[1]
        for address in ("127.0.0.1", "::1"):
            socket.create_connection((address, port), timeout=5).close()


def test_one_address_is_only_that_one() -> None:
    with open_socket("::1", 0) as listening, pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", listening.getsockname()[1]), timeout=5)


async def test_clients_of_both_families_are_served_and_logged_by_their_address(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with (
        hosted_api() as engine,
        running_gateway(
            tmp_path, document_of(SOUND), engines={"qwen-medium": [engine]}, host="", admin_host="", access_log=True
        ) as gw,
    ):
        for host in ("127.0.0.1", "[::1]"):
            async with gw.session.post(f"http://{host}:{gw.port}/v1/chat/completions", json=chat_body()) as answer:
                assert answer.status == 200
            async with gw.session.get(f"http://{host}:{gw.gateway.admin_port}/readyz") as answer:
                assert answer.status == 200
    log = capfd.readouterr().out
    assert '"peer":"127.0.0.1"' in log
    assert '"peer":"::1"' in log


async def test_a_certificate_is_served_and_exchanged_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_CERTIFICATE_S", 0.02)
    write_certificate(tmp_path, "first")
    async with (
        hosted_api() as engine,
        running_gateway(tmp_path, document_of(SOUND), engines={"qwen-medium": [engine]}, tls_files=tmp_path) as gw,
    ):
        context = ssl.create_default_context(cafile=tmp_path / "tls.crt")
        url = f"https://localhost:{gw.port}/v1/chat/completions"
        async with gw.session.post(url, json=chat_body(stream=True), ssl=context) as answer:
            assert (await answer.text()).endswith("data: [DONE]\n\n")
        with pytest.raises(aiohttp.ClientError):
            await gw.session.post(f"http://localhost:{gw.port}/v1/chat/completions", json=chat_body())
        (tmp_path / "tls.key").write_text("garbage")
        os.utime(tmp_path / "tls.key", (1, 1))
        await asyncio.sleep(0.1)
        assert await asyncio.to_thread(name_of_server, gw.port) == "CN=first"
        write_certificate(tmp_path, "second")

        async def exchanged() -> bool:
            return await asyncio.to_thread(name_of_server, gw.port) == "CN=second"

        async with asyncio.timeout(10):
            while not await exchanged():
                await asyncio.sleep(0.02)


def test_a_folder_without_a_certificate_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"Mount a Secret of type kubernetes\.io/tls"):
        Certificate(tmp_path)


async def test_pages_of_an_allowed_origin_may_call(tmp_path: Path) -> None:
    page, other = {"origin": "https://app.example.com"}, {"origin": "https://evil.example.com"}
    question = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    async with (
        hosted_api() as engine,
        running_gateway(
            tmp_path,
            document_of(SOUND),
            engines={"qwen-medium": [engine]},
            cors_origins=("https://app.example.com",),
        ) as gw,
    ):
        url = gw.url + "/v1/chat/completions"
        async with gw.session.options(url, headers={**page, **question}) as answer:
            assert answer.status == 200
            assert answer.headers["access-control-allow-origin"] == page["origin"]
            assert answer.headers["access-control-allow-headers"] == "authorization"
            assert "POST" in answer.headers["access-control-allow-methods"]
        for model, status in (("support", 200), ("unknown", 404)):
            async with gw.session.post(url, json=chat_body(model), headers=page) as answer:
                assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, page["origin"])
                assert "x-flotilla-route" in answer.headers["access-control-expose-headers"]
        async with gw.session.options(url, headers={**other, **question}) as answer:
            assert "access-control-allow-origin" not in answer.headers
        assert not (await gw.chat())[2].get("access-control-allow-origin")
