"""``--help``, ``--version``, ``--commands`` and ``--options``."""

from __future__ import annotations

import sys

from ovsvhost.vsctl.getopt_long import Argument
from ovsvhost.vsctl.names import vswitch_schema
from ovsvhost.vsctl.options import OPTIONS, Options
from ovsvhost.vsctl.verbs import VERBS

_HELP = """\
ovsvhost vsctl: configures the switch, with the grammar of ovs-vsctl(8)
usage: ovsvhost vsctl [OPTIONS] COMMAND [ARG...] [-- [OPTIONS] COMMAND [ARG...]]...

Commands:
{commands}
Options:
  --db=DATABASE               connect to DATABASE (default: {db})
  --no-wait                   do not wait for the switch to take the change in
  --retry                     keep trying to connect to the server
  -t, --timeout=SECS          give up after SECS seconds
  --dry-run                   do not commit changes
  --oneline                   print exactly one line per command
  -f, --format=FORMAT         tables as "table", "list", "html", "csv" or "json"
  -d, --data=FORMAT           values as "string", "bare" or "json"
  --no-headings               tables without their headings
  --pretty                    indented JSON
  --bare                      the same as --format=list --data=bare --no-headings
  --max-column-width=N        cut the columns of --format=table to N characters
  -p, --private-key=FILE, -c, --certificate=FILE, -C, --ca-cert=FILE
                              keys for a server at ssl:HOST:PORT
  -h, --help, -V, --version, --commands, --options
                              print this, the version, the grammar, the options
"""


def put(answer: str, options: Options) -> None:
    """Prints the answer to one of the options that ask for nothing else.

    Args:
        answer: one of ``ovsvhost.vsctl.options.ANSWERS``.
        options: the options, for their defaults.
    """
    match answer:
        case "help":
            lines = (f"  {verb.name} {verb.usage}".rstrip() for verb in VERBS.values())
            text = _HELP.format(commands="".join(f"{line}\n" for line in lines), db=options.db)
        case "version":
            text = f"ovsvhost vsctl {_version()}\nDB Schema {vswitch_schema().version}\n"
        case "commands":
            text = "".join(
                f"{''.join(f'[{option}] ' for option in verb.options)},{verb.name},{verb.usage}\n"
                for verb in VERBS.values()
            )
        case _:
            text = "".join(
                f"--{option.name}{'=ARG' if option.argument is not Argument.NONE else ''}\n"
                + (f"-{option.short}{' ARG' if option.argument is not Argument.NONE else ''}\n" if option.short else "")
                for option in OPTIONS
            )
    sys.stdout.write(text)


def _version() -> str:
    from ovsvhost import __version__  # noqa: PLC0415 - loads the Rust core, which knows it

    return __version__
