"""`penstock agent`: this host's agent, and the end of its workers."""

import argparse
from typing import Any

from penstock.commands.start import role_settings
from penstock.parsing import add_setting, add_shared_settings, add_verb


def add_agent(group: Any) -> None:
    """`penstock agent`."""
    parser = add_verb(
        group,
        "agent",
        run_agent,
        help="run this GPU host's agent, which starts and ends its workers",
        example="penstock agent --redis redis://10.0.0.5:6379/0 --host gpu-7\npenstock agent --stop-workers",
        description=(
            "Run this GPU host's agent: it carries out the autoscaler's orders.\n"
            "Its workers go on when it ends, and the next agent takes them over.\n"
            "To take a host out of service, end its agent and then run --stop-workers."
        ),
    )
    add_setting(parser, "--host", "agent.host", metavar="NAME", help="this host's name (default: the machine's)")
    add_setting(parser, "--group", "agent.group", metavar="NAME", help="the autoscaler group it serves (default main)")
    add_setting(parser, "--max-workers", "agent.max_workers", metavar="N", help="most workers here (default: what GPUs can hold)")
    parser.add_argument("--stop-workers", action="store_true", help="end all workers that agents started here, and exit")
    add_shared_settings(parser)


def run_agent(args: argparse.Namespace) -> int:
    """Until SIGTERM or Ctrl-C; its workers go on."""
    settings = role_settings(args, "agent")
    from autoscaler.agent.serve import run

    return run(settings, stop_workers=args.stop_workers)
