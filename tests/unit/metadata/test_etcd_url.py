"""etcd:// URLs: what they mean, and one clear line for each mistake."""

from pathlib import Path

import pytest

from san_target.metadata.etcd_url import EtcdOptions, parse_etcd_url
from san_target.metadata.factory import make_store
from san_target.metadata.store import StoreError


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("etcd://a:1", EtcdOptions((("a", 1),))),
        ("etcd://a", EtcdOptions((("a", 2379),))),
        ("etcd://10.0.0.1:1,b.example:2,[::1]:3/", EtcdOptions((("10.0.0.1", 1), ("b.example", 2), ("::1", 3)))),
        ("etcd://a:1?prefix=/san/", EtcdOptions((("a", 1),), prefix="/san/")),
        (
            "etcd://a:1?ca=/c/a%20b.pem&cert=c&key=k&user=u&password_file=p",
            EtcdOptions((("a", 1),), ca="/c/a b.pem", cert="c", key="k", user="u", password_file="p"),
        ),
    ],
)
def test_what_a_url_means(url: str, options: EtcdOptions) -> None:
    assert parse_etcd_url(url) == options


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("etcd://", "'' is no HOST:PORT"),
        ("etcd://a:1,", "'' is no HOST:PORT"),
        ("etcd://a:0", "'a:0' is no HOST:PORT"),
        ("etcd://a:70000", "'a:70000' is no HOST:PORT"),
        ("etcd://a:b", "'a:b' is no HOST:PORT"),
        ("etcd://a:1,a:1", "an endpoint is given twice"),
        ("etcd://u:p@a:1", "it holds a user; give user=NAME and password_file=FILE instead"),
        ("etcd://a:1/san", "'/san' has no meaning; the part of the keys is prefix=/KEYS/"),
        ("etcd://a:1?tls=yes", "there is no option 'tls'"),
        ("etcd://a:1?endpoints=b", "there is no option 'endpoints'"),
        ("etcd://a:1?ca=", "the option 'ca' is empty"),
        ("etcd://a:1?ca=b&ca=c", "the option 'ca' is given twice"),
        ("etcd://a:1?cert=c", "cert=FILE and key=FILE belong together"),
        ("etcd://a:1?user=u", "user=NAME and password_file=FILE belong together"),
        ("etcd://a:1?prefix=san", "prefix=san must end with '/', for example /san-target/"),
    ],
)
def test_mistakes(url: str, problem: str) -> None:
    with pytest.raises(StoreError) as caught:
        make_store(url)
    message = str(caught.value)
    assert message.startswith(f"the store URL cannot be used: {problem}. Write etcd://HOST:PORT[,HOST:PORT...]")
    assert "\n" not in message


def test_files_that_are_missing_or_of_another_kind(tmp_path: Path) -> None:
    absent, text, empty, noise = (tmp_path / name for name in ("absent", "text", "empty", "noise"))
    text.write_text("no certificate\n")
    empty.write_text("")
    noise.write_bytes(b"\xff\xfe")
    where = (("a", 1),)
    for options, problem in (
        (EtcdOptions(where, ca=str(absent)), f"ca={absent} cannot be read (No such file or directory)"),
        (EtcdOptions(where, ca=str(noise)), f"ca={noise} is no text file"),
        (EtcdOptions(where, ca=str(text)), f"ca={text} is no PEM file of certificates"),
        (EtcdOptions(where, cert=str(text), key=str(text)), f"cert={text} and key={text} are not a certificate"),
    ):
        with pytest.raises(StoreError) as caught:
            options.tls()
        assert problem in str(caught.value)
    for path, problem in ((absent, "cannot be read"), (empty, "is empty"), (noise, "is no text file")):
        with pytest.raises(StoreError) as caught:
            EtcdOptions(where, user="u", password_file=str(path)).password()
        assert f"password_file={path} {problem}" in str(caught.value)


def test_the_password_is_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("with blanks \nsecond line\n")
    assert EtcdOptions((("a", 1),), user="u", password_file=str(path)).password() == "with blanks "


def test_without_options_there_is_no_tls() -> None:
    assert EtcdOptions((("a", 1),)).tls() is None
