"""`etcd://` URLs: where etcd is, and how to speak to it. Files are read when needed, so that they may be renewed."""

import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from san_target.metadata.store import StoreError

DEFAULT_PORT = 2379
DEFAULT_PREFIX = "/san-target/"
FORM = (
    "etcd://HOST:PORT[,HOST:PORT...][?OPTION=VALUE&...] with the options "
    "ca=FILE, cert=FILE, key=FILE, user=NAME, password_file=FILE and prefix=/KEYS/"
)
_ENDPOINT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:\[\]/@]+)(:(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class EtcdOptions:
    """endpoints: (host without brackets, port). prefix: before each key, ends with "/". "" = not given.

    TLS is spoken if ca, cert or key is given. ca: who signs etcd's certificates, "" = the system's authorities.
    """

    endpoints: tuple[tuple[str, int], ...]
    prefix: str = DEFAULT_PREFIX
    ca: str = ""
    cert: str = ""
    key: str = ""
    user: str = ""
    password_file: str = ""

    @property
    def has_tls(self) -> bool:
        return bool(self.ca or self.cert)

    def tls(self) -> ssl.SSLContext | None:
        """A context with the certificates as they are now; reads files. StoreError: they cannot be used."""
        if not self.has_tls:
            return None
        for name, path in (("ca", self.ca), ("cert", self.cert), ("key", self.key)):
            if path:
                _read(path, name)
        try:
            context = ssl.create_default_context(cafile=self.ca or None)
        except ssl.SSLError as error:
            raise StoreError(f"the store's ca={self.ca} is no PEM file of certificates ({error.reason})") from None
        if self.cert:
            try:
                # With a password given, a key that needs one is an error rather than a question on the terminal.
                context.load_cert_chain(self.cert, self.key, password="")
            except (ssl.SSLError, ValueError) as error:
                reason = getattr(error, "reason", None) or error
                raise StoreError(
                    f"the store's cert={self.cert} and key={self.key} are not a certificate and its unencrypted key "
                    f"in PEM form ({reason})"
                ) from None
        context.set_alpn_protocols(["h2"])
        return context

    def password(self) -> str:
        """The first line of the password file; reads it. StoreError."""
        lines = _read(self.password_file, "password_file").splitlines()
        if not lines or not lines[0]:
            raise StoreError(f"the store's password_file={self.password_file} is empty")
        return lines[0]


def _read(path: str, name: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise StoreError(f"the store's {name}={path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise StoreError(f"the store's {name}={path} is no text file") from None


def parse_etcd_url(url: str) -> EtcdOptions:
    """StoreError says what is wrong with the URL."""
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise _mistake("it holds a user; give user=NAME and password_file=FILE instead")
    if parts.path not in ("", "/") or parts.fragment:
        raise _mistake(f"{parts.path or '#' + parts.fragment!r} has no meaning; the part of the keys is prefix=/KEYS/")
    endpoints = tuple(_endpoint(text) for text in parts.netloc.split(","))
    if len(set(endpoints)) != len(endpoints):
        raise _mistake("an endpoint is given twice")
    options: dict[str, str] = {}
    known = set(EtcdOptions.__dataclass_fields__) - {"endpoints"}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in known:
            raise _mistake(f"there is no option {name!r}")
        if name in options or not value:
            raise _mistake(f"the option {name!r} is {'given twice' if name in options else 'empty'}")
        options[name] = value
    found = EtcdOptions(endpoints, **options)
    if bool(found.cert) != bool(found.key):
        raise _mistake("cert=FILE and key=FILE belong together")
    if bool(found.user) != bool(found.password_file):
        raise _mistake("user=NAME and password_file=FILE belong together")
    if not found.prefix.endswith("/") or not found.prefix.isprintable():
        raise _mistake(f"prefix={found.prefix} must end with '/', for example {DEFAULT_PREFIX}")
    return found


def _endpoint(text: str) -> tuple[str, int]:
    found = _ENDPOINT.fullmatch(text)
    port = int(found["port"] or DEFAULT_PORT) if found else 0
    if found is None or not 0 < port < 65536:
        raise _mistake(f"{text!r} is no HOST:PORT")
    return found["host"].strip("[]"), port


def _mistake(what: str) -> StoreError:
    return StoreError(f"the store URL cannot be used: {what}. Write {FORM}")
