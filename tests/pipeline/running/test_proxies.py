"""Proxies are for what is elsewhere: clients go to this machine directly, whatever the environment says."""

import httpx
import pytest

from pipeline.running.proxies import bypass_loopback


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "127.0.0.1,localhost"),
        ({"NO_PROXY": "example.com"}, "example.com,127.0.0.1,localhost"),
        ({"no_proxy": " a, b ,,"}, "a,b,127.0.0.1,localhost"),
        ({"NO_PROXY": "a", "no_proxy": "b,a"}, "a,b,127.0.0.1,localhost"),
        ({"NO_PROXY": "localhost,127.0.0.1"}, "localhost,127.0.0.1"),
        ({"NO_PROXY": "*"}, "*,127.0.0.1,localhost"),
    ],
)
def test_this_machine_is_added_once_to_both_spellings(before, after):
    environment = dict(before)
    bypass_loopback(environment)
    assert environment == {"NO_PROXY": after, "no_proxy": after}
    bypass_loopback(environment)
    assert environment == {"NO_PROXY": after, "no_proxy": after}


USELESS = ["socks5://127.0.0.1:9", "socks4://h:1", "foo:bar", "http://", "http://[::", "ftp://h:1", "http://h:99999"]


@pytest.mark.parametrize("name", ["HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "127.0.0.1:9", "https://u:p@h:1", *USELESS])
def test_a_client_can_be_made_and_does_not_ask_the_proxy_for_this_machine(name, proxy, monkeypatch, capsys):
    environment = {name: proxy}
    bypass_loopback(environment)
    assert (name in environment) == (proxy not in USELESS)
    sentence = f"{name} is left out: it holds no http://HOST:PORT of a proxy (SOCKS needs the package socksio)\n"
    assert capsys.readouterr().err == (sentence if proxy in USELESS else "")  # its value may hold a password
    for each in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        for spelt in (each, each.upper()):
            monkeypatch.delenv(spelt, raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with httpx.Client() as client:
        for host in ("127.0.0.1", "localhost"):
            assert client._transport_for_url(httpx.URL(f"http://{host}:4200/api")) is client._transport
        elsewhere = client._transport_for_url(httpx.URL("http://example.com"))
        assert (elsewhere is client._transport) == (proxy in USELESS or name.lower() == "https_proxy")
