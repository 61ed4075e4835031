"""What is on this machine is reached directly: Prefect's clients would ask the proxy of HTTP_PROXY for it."""

import sys
from collections.abc import MutableMapping
from importlib.util import find_spec
from urllib.parse import urlsplit

LOOPBACK = ("127.0.0.1", "localhost")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_BYPASSED = "no_proxy"


def bypass_loopback(environment: MutableMapping[str, str]) -> None:
    """Adds this machine to NO_PROXY, and leaves out, with a sentence, proxies that would stop every client."""
    for name in [name for name in environment if name.lower() in _PROXIES]:
        if environment[name] and not _is_usable(environment[name]):
            del environment[name]
            print(
                f"{name} is left out: it holds no http://HOST:PORT of a proxy (SOCKS needs the package socksio)",
                file=sys.stderr,
            )
    found = [environment[name] for name in environment if name.lower() == _BYPASSED]
    hosts = dict.fromkeys(host.strip() for value in found for host in value.split(",") if host.strip())
    # Both spellings: which of them wins depends on the client.
    environment["NO_PROXY"] = environment[_BYPASSED] = ",".join(dict.fromkeys((*hosts, *LOOPBACK)))


def _is_usable(proxy: str) -> bool:
    schemes = ("http", "https", *(("socks5", "socks5h") if find_spec("socksio") else ()))
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        return parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:  # its port is no number
        return False
