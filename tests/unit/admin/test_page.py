"""The web page: one document, nothing from outside, nothing that could run foreign markup."""

import re

from tests.unit.admin.client import AppClient


def test_page_is_whole_and_asks_only_its_own_member(client: AppClient) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    addresses = re.findall(r"""(?:src|href|action)\s*=\s*["']([^"']*)""", answer.text)
    assert addresses
    assert all(address.startswith(("/", "data:")) and not address.startswith("//") for address in addresses)
    assert "@import" not in answer.text
    assert "url(" not in answer.text


def test_page_never_makes_markup_of_text(client: AppClient) -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", client.get("/").text)


def test_page_reads_paths_and_keys_that_exist(client: AppClient) -> None:
    text = client.get("/").text
    document = client.get("/api/v1/openapi.json").json()
    (asked,) = re.findall(r"\[([^]]*)\]\.map\(ask\)", text)
    paths = asked.replace('"', "").split(", ")
    assert paths
    for path in paths:
        assert f"/api/v1{path}" in document["paths"]
    schemas = document["components"]["schemas"]
    for letter, schema in {"v": "Volume", "s": "Session", "m": "Member", "p": "Portal"}.items():
        keys = set(re.findall(rf"\b{letter}\.([a-z_]+)", text))
        assert keys
        assert keys <= schemas[schema]["properties"].keys()
