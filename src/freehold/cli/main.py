"""The entry point: which commands there are, and how each of them ends.

    exit 0  done        exit 1  it could not be done, and says why        exit 2  the command was written wrongly

The table names every command's module and one line of help, so that `freehold --help` imports none of them.
Invariant: data goes to stdout and everything else to stderr; a user's mistake never shows a traceback.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from freehold import __version__
from freehold.cli.output import INTERRUPTED, Program, error_json, shared_options
from freehold.cli.settings import Settings

COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("up", "Run the local network until Ctrl-C: chain, oracle members, operators, a client account."),
    "status": ("status", "What runs where, healthy or why not; the epoch's step."),
    "cp": ("files", "Copy files to and from fh:// paths."),
    "ls": ("files", "List buckets, or what is under an fh:// path."),
    "mb": ("files", "Make a bucket."),
    "rb": ("files", "Remove an empty bucket."),
    "rm": ("files", "Remove objects."),
    "bucket": ("buckets", "Upkeep of buckets."),
    "job": ("jobs", "Run work on other people's machines: order it, follow it, see why."),
    "share": ("share", "Give a link to objects, narrow it, see and revoke what was shared."),
    "key": ("keys", "Access keys for S3 programs: make, list, remove."),
    "operator": ("operators", "Who holds what, bond, reputation, earned."),
    "lease": ("leases", "List and close leases with operators."),
    "epoch": ("epochs", "List, show and replay epochs."),
    "fleet": ("fleets", "Devices: make, register, prove, move, revoke, report."),
    "watch": ("watching", "Replay every epoch as it is accepted, and dispute what does not follow."),
    "why": ("why", "Why an operator was paid what it was paid in an epoch, or nothing."),
    "claim": ("claims", "Claim what an account has earned: tokens arrive."),
    "freeze": ("freeze", "Freeze a silent network, so that the way out opens; or say when that is possible."),
    "collect": ("freeze", "Have a node's vouchers paid on chain while the network is frozen."),
    "pause": ("pausing", "Pause claims and activation for a while: the guardian's only power."),
    "unpause": ("pausing", "End a pause before its time."),
    "members": ("members", "The quorum's members, by epoch, and their bonds."),
    "parameters": ("parameters", "The network's parameters, by epoch."),
    "wallet": ("wallets", "Make, show and import accounts; send tokens."),
    "credits": ("credits", "Show and buy prepaid credits."),
    "gateway": ("gateway", "Run an S3 gateway, and ask how it is."),
    "node": ("processes", "Run an operator's node."),
    "oracle": ("processes", "Run an oracle member."),
    "deploy": ("deploy", "Deploy the contracts to a chain and write the network file."),
    "doctor": ("doctor", "Check network, clock, disk, balance and RPC; say what to do about each."),
    "config": ("config", "Show every setting and where its value comes from."),
    "completion": ("completion", "Print the completion script of a shell."),
}


class Freehold(click.Group):
    """The top group: its commands are imported when they are asked for."""

    def list_commands(self, _: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"freehold.cli.{COMMANDS[cmd_name][0]}")
        found = getattr(module, cmd_name)
        if not isinstance(found, click.Command):
            raise TypeError(f"{cmd_name} is not a command")
        return found

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = "freehold", **extra: Any
    ) -> NoReturn:
        """Run one command and exit."""
        os.environ.setdefault("ETH_HASH_BACKEND", "pysha3")  # before anything imports eth-hash: five times faster
        if "_FREEHOLD_COMPLETE" in os.environ:
            super().main(args, prog_name, complete_var="_FREEHOLD_COMPLETE", **extra)
        given = list(sys.argv[1:] if args is None else args)
        as_json = "--json" in given or bool(os.environ.get("FREEHOLD_JSON"))
        sys.exit(self.run(given, Program(Settings({}), as_json=as_json)))

    def run(self, given: list[str], program: Program) -> int:
        """Run one command; its exit code."""
        try:
            code = super().main(given, "freehold", standalone_mode=False, obj=program)
            sys.stdout.flush()
            return code if isinstance(code, int) else program.exit_code
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (click.Abort, KeyboardInterrupt) as error:
            program.fail(error_json("aborted", "stopped; nothing more was done"))
            return INTERRUPTED if KeyboardInterrupt in (type(error), type(error.__cause__)) else 1
        except click.UsageError as error:
            if program.as_json:
                program.fail(error_json("usage", error.format_message()))
            else:
                error.show()
            return 2
        except click.ClickException as error:
            program.fail(error_json("failed", error.format_message()))
            return 1
        except Exception as error:
            if os.environ.get("FREEHOLD_DEBUG"):
                raise
            program.fail(describe(error))
            return 1


def describe(error: BaseException) -> dict[str, Any]:
    """Any exception as an error of the envelope."""
    from freehold.protocol.errors import FreeholdError

    if isinstance(error, BaseExceptionGroup):
        return describe(error.exceptions[0])
    if isinstance(error, FreeholdError):
        return error.to_json()
    if isinstance(error, OSError):
        what = f"{error.filename}: " if error.filename else ""
        return error_json("system", f"{what}{error.strerror or error}", "Check the path, its permissions and the disk.")
    message = f"this should not have happened: {type(error).__name__}: {error}"
    return error_json("internal", message, "Run it again with FREEHOLD_DEBUG=1, and report what it prints.")


@click.group(cls=Freehold, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="freehold")
def main() -> None:
    """Infrastructure owned by the people who run it: verified work, one settlement root an epoch, recomputable by
    anyone. Start with `freehold up`."""


main.params += shared_options(hidden=False)

if __name__ == "__main__":
    main()
