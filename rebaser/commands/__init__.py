"""The commands: a module each, with its options and what it prints; and the help of all."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType
    from typing import Any

# Each is a module of rebaser.commands. Its docstring is the command's help, add_arguments(parser)
# declares its options, and main(arguments) does its work and returns the exit status. Some have
# USUAL and OPERANDS too: see `plain_arguments`.
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
    """What a command line means, an attribute each; what was not given is None or false.

    `settings` is the file of the tree's own options, if they are in it.
    """

    settings: str | None = None

    def __init__(self, found: Mapping[str, Any]) -> None:
        vars(self).update(found)

    def __getattr__(self, name: str) -> Any:
        return None


def plain_arguments(command: ModuleType, words: Sequence[str]) -> Arguments | None:
    """Return what the parser makes of a command's usual words, None where that is for it to say.

    A hook that has nothing to do need not wait for argparse to be imported. `command.USUAL` are
    options, with what they set or with the attribute of their value and its type. OPERANDS are the
    attribute of the operands, and whether that is "one", "some", or "all" from the first one on.
    """
    usual: dict[str, tuple[str, Any]] = getattr(command, "USUAL", {})
    attribute, number = getattr(command, "OPERANDS", ("", ""))
    found: dict[str, Any] = {}
    rest, operands = list(words), []
    while rest:
        word = rest.pop(0)
        if number == "all" and (word[:1] != "-" or word == "--"):
            operands, rest = [word, *rest], []
        elif word[:1] not in ("", "-"):
            operands.append(word)
        elif word not in usual:
            return None
        else:
            name, value = usual[word]
            if isinstance(value, type):
                if not rest or (rest[0][:1] in ("", "-") and rest[0] != "-"):
                    return None
                value = value(rest.pop(0))
            found[name] = value
    if not number or (number == "one" and len(operands) > 1):
        return None
    found[attribute] = operands if number != "one" else operands[0] if operands else None
    return Arguments(found)


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
