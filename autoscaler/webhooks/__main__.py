"""`python -m autoscaler.webhooks`: the process of webhooks, by the settings of its environment."""

import sys

from autoscaler.webhooks.runner import run_webhooks
from dispatch.configuration import load_settings
from dispatch.errors import PenstockError
from dispatch.logs import configure


def main() -> int:
    """Its exit code: 2 for settings that cannot be used."""
    try:
        settings = load_settings({})
        configure(settings, "webhooks")
        return run_webhooks(settings)
    except PenstockError as error:
        sys.stderr.write(f"{error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
