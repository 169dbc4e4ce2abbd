"""Which network addresses lie on the open internet: where we send things for others, but to nobody's inside. Pure.

Never here: resolving names, who asks.
"""

import ipaddress

# What Python calls global although it leads elsewhere, or holds an IPv4 address that a router may unpack.
_LEADING_ELSEWHERE = tuple(
    ipaddress.ip_network(text)
    for text in (
        "192.88.99.0/24",  # 6to4 relays
        "::/96",  # IPv4-compatible
        "::ffff:0:0/96",  # IPv4-mapped
        "::ffff:0:0:0/96",  # IPv4-translated
        "64:ff9b::/96",  # NAT64
        "64:ff9b:1::/48",  # NAT64, local
        "2001::/23",  # Teredo, ORCHID and other protocols
        "2002::/16",  # 6to4
        "fec0::/10",  # site-local
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
    return not any(found.version == each.version and found in each for each in _LEADING_ELSEWHERE)


def is_address(host: str) -> bool:
    """Whether a URL's host is an IP address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
