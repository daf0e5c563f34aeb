"""The configuration: file and options, and what is said about mistakes."""

from pathlib import Path
from typing import Any

import pytest

from san_target.server import config
from san_target.server.config import ConfigError, MemberConfig, load
from san_target.session.parameters import TargetLimits


def load_text(tmp_path: Path, text: str, **options: Any) -> MemberConfig:
    path = tmp_path / "member.toml"
    path.write_text(text)
    return load(path, options)


def test_defaults() -> None:
    found = load(None, {"directory": "/srv/pool"})
    assert found.portals == ("0.0.0.0:3260",)
    assert found.admin == "127.0.0.1:3280"
    assert found.group == "san-target"
    assert found.store_url == "sqlite:///srv/pool/group.sqlite"
    assert found.limits.target_limits() == TargetLimits()


def test_the_store_of_an_odd_directory_is_a_good_url(tmp_path: Path) -> None:
    found = load(None, {"directory": str(tmp_path / "a b?c#d")})
    assert found.store_url == f"sqlite://{tmp_path}/a%20b%3Fc%23d/group.sqlite"


def test_options_win_over_the_file(tmp_path: Path) -> None:
    text = """
        name = "one"
        directory = "/srv/pool"
        portals = ["10.0.0.1:3260", "[fd00::1]:3260"]
        [limits]
        command_window = 64
        """
    found = load_text(tmp_path, text, name="two", portals=(), admin=None, busy_poll_us=50)
    assert (found.name, found.busy_poll_us) == ("two", 50)
    assert found.portals == ("10.0.0.1:3260", "[fd00::1]:3260")
    assert found.limits.target_limits().command_window == 64
    assert load_text(tmp_path, text, portals=["127.0.0.1:1"]).portals == ("127.0.0.1:1",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "directory: must be given"),
        ("directory = 1", "directory: expected str, got int"),
        ('directory = "d"\nportal = "x"', "portal: there is no such key; there are name, directory, portals"),
        ('directory = "d"\n[limits]\nburst = 1', "limits.burst: there is no such key; there are max_recv"),
        ('directory = "d"\n[limits]\ncommand_window = 0', "limits.command_window: expected int >= 1"),
        ('directory = "d"\n[limits]\nmax_burst_length = 1024', "first_burst_length: must not be greater"),
        ('directory = "d"\nportals = []', "portals: expected array of length >= 1"),
        ('directory = "d"\nportals = ["localhost"]', "portals: 'localhost' is no HOST:PORT"),
        ('directory = "d"\nportals = ["::1:3260"]', "portals: '::1:3260' is no HOST:PORT"),
        ('directory = "d"\nportals = ["a:65536"]', "portals: 'a:65536' is no HOST:PORT"),
        ('directory = "d"\nportals = ["a:1", "a:1"]', "portals: an address is given twice"),
        ('directory = "d"\nadmin = ""', "admin: '' is no HOST:PORT"),
        ('directory = "d"\nportals = ["127.0.0.1:1"]\nadmin = "127.0.0.1:1"', "admin: it is one of the portals too"),
        ('directory = "d"\nadvertise = ["a:1", "a:2"]', "advertise: give one address for all portals"),
        ('directory = "d"\npeer_tls_ca = "ca"', "peer_tls_cert: must be given too"),
        ('directory = "d"\npeer_tls_cert = "c"\npeer_tls_ca = "ca"', "peer_tls_key: must be given too"),
        (
            'directory = "d"\npeer_tls_ca = "a"\npeer_tls_cert = "c"\npeer_tls_key = "k"',
            "peer_tls_ca: needs peer, the address where other members reach this one",
        ),
        ('directory = "d"\ncongestion_control = "fastest"', "congestion_control: 'fastest' cannot be used (No such"),
        ('directory = "d"\ncongestion_control = ""', "congestion_control: '' cannot be used (that is no name of one)"),
        ('directory = "d"\nname = "a/b"', "name: 'a/b' is no name"),
        ('directory = "d"\nname = "A"', "name: 'A' is no name"),
        ('directory = "d"\ngroup = ""', "group: '' is no name"),
        ('directory = "d"\ndiscovery_chap = [{user = "u"}]', "secret_file: must be given"),
        ('directory = "d"\ndiscovery_mutual_chap = {user = "u", secret_file = "f"}', "needs discovery_chap"),
        ("directory = ", "is no TOML file"),
    ],
)
def test_mistakes_name_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, text)
    assert message in str(caught.value)
    assert str(tmp_path / "member.toml") in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent.toml cannot be read: No such file"):
        load(tmp_path / "absent.toml", {})


@pytest.mark.parametrize(
    ("address", "parts"),
    [("127.0.0.1:3260", ("127.0.0.1", 3260)), ("[::1]:0", ("::1", 0)), ("host.example:65535", ("host.example", 65535))],
)
def test_addresses(address: str, parts: tuple[str, int]) -> None:
    assert config.parse_address(address) == parts


def test_member_names() -> None:
    found = load(None, {"directory": "d"})
    assert config.member_name(found, "Node_7.example.org") == "node-7"
    assert config.member_name(load(None, {"directory": "d", "name": "x"}), "y") == "x"
    with pytest.raises(ConfigError, match="--name"):
        config.member_name(found, "")


def test_secrets(tmp_path: Path) -> None:
    good, short, same = tmp_path / "good", tmp_path / "short", tmp_path / "same"
    good.write_text("a-secret-of-16-b\nsecond line\n")
    same.write_text("a-secret-of-16-b")
    short.write_text("short\n")
    found = load(None, {"directory": "d", "discovery_chap": [{"user": "u", "secret_file": str(good)}]})
    access = config.discovery_access(found)
    assert [(user.user, user.secret) for user in access.chap] == [("u", b"a-secret-of-16-b")]
    for path, message in ((short, "has 5 bytes"), (tmp_path / "absent", "cannot be read"), (tmp_path, "cannot be")):
        bad = load(None, {"directory": "d", "discovery_chap": [{"user": "u", "secret_file": str(path)}]})
        with pytest.raises(ConfigError, match=message):
            config.discovery_access(bad)
    options = {
        "directory": "d",
        "discovery_chap": [{"user": "u", "secret_file": str(good)}],
        "discovery_mutual_chap": {"user": "t", "secret_file": str(same)},
    }
    with pytest.raises(ConfigError, match="must differ"):
        config.discovery_access(load(None, options))


def test_api_token(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("0123456789abcdef\n")
    assert config.api_token(load(None, {"directory": "d", "api_token_file": str(path)})) == "0123456789abcdef"
    assert config.api_token(load(None, {"directory": "d"})) is None
    path.write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        config.api_token(load(None, {"directory": "d", "api_token_file": str(path)}))


def test_certificates_of_members(tmp_path: Path) -> None:
    """(That good ones are taken, and which are not trusted: test_peer_tls.py.)"""
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate\n")
    absent = str(tmp_path / "absent.pem")
    assert config.peer_tls(load(None, {"directory": "d"})) is None
    for files, message in (
        ((absent, str(bad), str(bad)), f"peer_tls_ca: {absent} cannot be read: No such file or directory"),
        ((str(bad), absent, str(bad)), f"peer_tls_cert: {absent} cannot be read: No such file or directory"),
        ((str(bad), str(bad), absent), f"peer_tls_key: {absent} cannot be read: No such file or directory"),
        ((str(bad), str(bad), str(bad)), f"peer_tls_ca: {bad} holds no certificate in PEM form"),
    ):
        options = dict(zip(config.PEER_TLS_KEYS, files, strict=True))
        with pytest.raises(ConfigError) as caught:
            config.peer_tls(load(None, {"directory": "d", "peer": "h:1"} | options))
        assert str(caught.value) == message
