"""The commands: a module each, with its options and what it prints; and the help of all."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType
    from typing import Any

# Each is a module of rebaser.commands. Its docstring is the command's help, add_arguments(parser)
# declares its options, and main(arguments) does its work and returns the exit status. Some have
# plain_arguments(words) too, which reads the usual words without argparse; DEFAULTS are the others.
COMMANDS = {
    "run": "make a tree of DLLs fork-safe",
    "check": "say what breaks fork; change nothing",
    "info": "list images by base",
    "map": "draw the address space",
    "status": "the last runs, the lock, the room left",
    "flags": "show or set PE flags, as Cygwin's peflags",
    "lock": "run a command while holding a lock",
    "hook": "print the hook for a package manager",
    "forget": "take away what rebaser keeps of a tree",
}


class Arguments:
    """What a command line means, as argparse's Namespace has it, without the import of argparse."""

    def __init__(self, **found: object) -> None:
        vars(self).update(found)


def plain_options(
    words: list[str],
    found: dict[str, Any],
    switches: Mapping[str, tuple[str, object]],
    naming: Mapping[str, str],
) -> bool:
    """Take the options off the front of `words`, into `found`; return whether all are plain.

    `switches` are those without a value, with what they set, and `naming` those whose next word
    goes to an attribute. What else there is, is for argparse to say.
    """
    while words and words[0][:1] == "-" and words[0] != "--":
        word = words.pop(0)
        if word in switches:
            found.update([switches[word]])
        elif word in naming and words and (words[0] == "-" or words[0][:1] not in ("", "-")):
            found[naming[word]] = words.pop(0)
        else:
            return False
    return True


def command_module(name: str) -> ModuleType:
    """Import the module of one command, and no other: an import costs milliseconds."""
    return __import__(f"rebaser.commands.{name}", fromlist=["main"])


def overview() -> str:
    """Return the help of `rebaser` itself."""
    width = max(len(name) for name in COMMANDS)  # `map` is a module here
    commands = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return f"""\
usage: rebaser COMMAND [ARG ...]

Keeps a tree of Cygwin or MSYS2 DLLs fork-safe.

commands:
{commands}

options:
  -h, --help  show this help; rebaser help COMMAND, or rebaser COMMAND --help, tells more
  --version   show the version
"""
