"""Which network addresses lie on the open internet: where we send things for others, but to nobody's inside. Pure.

Never here: resolving names, who asks.
"""

import ipaddress

# IPv6 hosts on the open internet are all in here.
_UNICAST = ipaddress.ip_network("2000::/3")
# What Python calls global although it leads elsewhere, or holds an IPv4 address that a router may unpack.
_LEADING_ELSEWHERE = tuple(
    ipaddress.ip_network(text)
    for text in (
        "192.0.0.0/24",  # protocols, and a cloud's metadata
        "192.88.99.0/24",  # 6to4 relays
        "2001::/23",  # Teredo, ORCHID and other protocols
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
    )
)


def is_public(address: str) -> bool:
    """Whether an IP address is one host on the open internet. False for what is no address."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if not found.is_global or found.is_multicast or found.is_reserved or found.is_unspecified:
        return False
    if found.version == 6 and found not in _UNICAST:
        return False  # IPv4-mapped, -compatible and -translated, NAT64, site-local: they lead to other addresses
    return not any(found.version == each.version and found in each for each in _LEADING_ELSEWHERE)


def is_address(host: str) -> bool:
    """Whether a URL's host is an IP address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
