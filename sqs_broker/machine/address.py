"""Addresses on which a server listens."""

import ipaddress


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach a server on this address. "" means all addresses."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
