"""The verbs that check: `penstock doctor` and `penstock config show | check`."""

import argparse
import json
import sys
from typing import Any

from penstock.failures import FAILED, OK
from penstock.output import table
from penstock.parsing import Parser, add_setting, add_shared_settings, add_verb, settings_flags


def add_doctor(group: Any) -> None:
    """`penstock doctor`."""
    parser = add_verb(
        group,
        "doctor",
        _doctor,
        help="check settings, Redis, packages, devices and ports",
        example="penstock doctor\npenstock doctor -o json",
    )
    parser.add_argument("-o", "--output", choices=["table", "json"], default="table", help="how to print (default table)")
    add_shared_settings(parser)


def add_config(group: Any) -> None:
    """`penstock config show | check`."""
    parser = add_verb(group, "config", _help, help="show or check the settings", example="penstock config show --origin")
    verbs = parser.add_subparsers(metavar="COMMAND", parser_class=Parser, required=True)
    show = add_verb(
        verbs, "show", _show, help="every setting and its value, secrets masked", example="penstock config show --origin"
    )
    show.add_argument("--origin", action="store_true", help="where each value came from")
    show.add_argument("-o", "--output", choices=["table", "json"], default="table", help="how to print (default table)")
    check = add_verb(verbs, "check", _check, help="say whether the settings are valid", example="penstock config check")
    for verb in (show, check):
        add_shared_settings(verb)
        add_setting(verb, "--port", "gateway.port", metavar="PORT", help="port to listen on")


def _help(args: argparse.Namespace) -> int:
    args.parser.print_help()
    return OK


def _show(args: argparse.Namespace) -> int:
    from dispatch.configuration import load, shown, value_of

    loaded = load(settings_flags(args))
    values = {key: shown(key, value_of(loaded.settings, key)) for key in loaded.origins}
    if args.output == "json":
        document = {k: {"value": v, "origin": str(loaded.origins[k])} for k, v in values.items()} if args.origin else values
        print(json.dumps(document, indent=2))
        return OK
    head = ["setting", "value", *(["origin"] if args.origin else [])]
    rows = [[k, "-" if v is None else str(v), *([str(loaded.origins[k])] if args.origin else [])] for k, v in values.items()]
    print(table(head, rows))
    return OK


def _check(args: argparse.Namespace) -> int:
    from dispatch.configuration import load

    loaded = load(settings_flags(args))
    changed = sum(1 for origin in loaded.origins.values() if origin.layer != "default")
    print(f"The settings are valid: {changed} set, {len(loaded.origins) - changed} by default.")
    return OK


def _doctor(args: argparse.Namespace) -> int:
    from penstock.doctor import examine

    findings = examine(settings_flags(args))
    if args.output == "json":
        print(json.dumps([{"check": f.check, "ok": f.ok, "found": f.found, "to_do": f.to_do} for f in findings], indent=2))
    else:
        for finding in findings:
            print(f"[{'+' if finding.ok else '-'}] {finding.check}: {finding.found}")
            if finding.to_do:
                print(f"      do: {finding.to_do}")
    if all(finding.ok for finding in findings):
        return OK
    print("penstock: something needs attention; the lines with [-] say what to do.", file=sys.stderr)
    return FAILED
