"""Certificates for tests, made by openssl: an authority, and what it signs."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from tests.support.tools import run

NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
IDENTIFIERS = "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"  # Python 3.13 wants them
SERVER, CLIENT = "serverAuth", "clientAuth"


@dataclass(frozen=True)
class Certificate:
    """PEM files."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority whose files lie in `directory`."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self.directory = directory
        self.certificate = directory / f"{name}.pem"
        self._key = directory / f"{name}.key"
        files = ["-keyout", self._key, "-out", self.certificate]
        usage = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]  # Python 3.13 wants it
        run(["openssl", "req", "-x509", "-days", "2", "-subj", f"/CN={name}", *usage, *NEW_KEY, *map(str, files)])

    def issue(self, name: str, *uses: str) -> Certificate:
        """For the common name `name` and this machine's loopback; uses: SERVER, CLIENT."""
        path, key, request = (self.directory / f"{name}{suffix}" for suffix in (".pem", ".key", ".request"))
        extensions = self.directory / f"{name}.extensions"
        extensions.write_text(
            f"subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage={','.join(uses)}\n{IDENTIFIERS}"
        )
        run(["openssl", "req", "-subj", f"/CN={name}", *NEW_KEY, "-keyout", key, "-out", request])
        signer = ["-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial"]
        run(["openssl", "x509", "-req", "-days", "2", "-in", request, *signer, "-out", path, "-extfile", extensions])
        return Certificate(path, key)

    def context(self, client: Certificate) -> ssl.SSLContext:
        """For a client that trusts this authority, and shows that certificate."""
        context = ssl.create_default_context(cafile=str(self.certificate))
        context.load_cert_chain(client.certificate, client.key)
        return context
