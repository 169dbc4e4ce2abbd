"""One call to the gateway that the flags name. Never here: what is asked, how it is shown (commands/)."""

import argparse
from typing import Any

from penstock.parsing import api_key_of, server_of


def call(args: argparse.Namespace, method: str, path: str, **kwargs: Any) -> Any:
    """The JSON answer. Raises Failure."""
    from penstock.client import Gateway

    with Gateway(server_of(args), api_key_of(args)) as gateway:
        return gateway.call(method, path, **kwargs)
