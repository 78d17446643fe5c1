"""Every command of README and docs, in Cygwin's bash by Cygwin's Python; test_commands_on_cygwin.py
runs it in a root of its own.

Writes one JSON object to /tmp/told: for each line of shell its status, standard output and standard
error. argv: which parts. The checkout lies in /opt/rebaser, its programs are first on PATH.
"""

from __future__ import annotations

import filecmp
import json
import os
import subprocess
import sys

DYNLOAD = "/usr/lib/python3.9/lib-dynload"
SOURCES = [
    f"{DYNLOAD}/{name}.cpython-39-x86_64-cygwin.dll"
    for name in ("_csv", "_zoneinfo", "_queue", "_crypt", "_lsprof", "_opcode")
]
told: dict[str, tuple[int, str, str]] = {}


def shell(line: str, text: str = "", timeout: float = 300) -> tuple[int, str, str]:
    """Run a line of shell as a user types it, and note what came of it."""
    done = subprocess.run(
        ["bash", "-c", line],
        input=text,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    told[line] = done.returncode, done.stdout, done.stderr
    return told[line]


def make_tree(root: str) -> None:
    """Make a tree of six DLLs of Cygwin's own, all at one base."""
    os.makedirs(f"{root}/lib")
    os.makedirs(f"{root}/var")
    for source in SOURCES:
        target = f"{root}/lib/{os.path.basename(source).partition('.')[0]}.dll"
        with open(source, "rb") as old, open(target, "wb") as new:
            new.write(old.read())
        os.chmod(target, 0o755)
        subprocess.run(["rebase", "-b", "0x400000000", target], check=True, timeout=60)


def in_a_tree() -> None:
    """Each command on a small tree, and what bad input makes of it."""
    make_tree("/opt/sage")
    subprocess.run(["cp", "-a", "/opt/sage", "/opt/other"], check=True, timeout=60)
    os.environ["SAGE_LOCAL"] = "/opt/sage"
    shell("rebaser check /opt/sage")
    shell("rebaser run /opt/sage -n")
    shell("rebaser run /opt/sage --engine builtin --json")
    shell("rebaser run /opt/other --engine cygwin --json")
    _, differ, missing = filecmp.cmpfiles(
        *("/opt/sage/lib", "/opt/other/lib"), os.listdir("/opt/sage/lib"), shallow=False
    )
    told["what both engines do not make the same"] = 0, *(" ".join(x) for x in (differ, missing))
    shell("rebaser run")
    shell("rebaser check /opt/sage -v")
    shell("rebaser info /opt/sage --json")
    shell("rebaser map /opt/sage")
    shell("rebaser map /opt/sage --svg /tmp/map.svg; head -c 100 /tmp/map.svg")
    shell("rebaser status /opt/sage")
    shell("rebaser flags /opt/sage/lib/_csv.dll")
    shell("rebaser hook sage /opt/src")
    shell("rebaser hook pacman")
    shell("rebaser hook cygwin /opt/sage")
    shell("rebaser help run")
    shell("rebaser lock --root /opt/sage -- echo locked")
    shell("rebaser lock --name pip3 --root /opt/sage -- echo named")
    shell("sage-flock -x /opt/sage/var/lock/rebase.lock echo flocked")
    shell("sage-rebase /opt/other")
    # The names that Windows has for a folder, and those below /cygdrive.
    shell('windows="$(cygpath -w /opt/sage)"; rebaser run "$windows" --json')
    shell('mixed="$(cygpath -m /opt/sage)"; rebaser check "$mixed" --json')
    shell('SAGE_LOCAL="$(cygpath -m /opt/sage)" rebaser status')
    shell('drive="/cygdrive/z$(cygpath -m /opt/other | cut -c3-)"; rebaser run "$drive" --json')
    shell("rebaser run 'C:/there/is/nothing'")
    # Lists as Windows writes them, and names that Windows has not.
    shell("printf 'lib/_csv.dll\\r\\nlib/_queue.dll\\r\\n' | rebaser run --only-from - --json")
    for name in ("a:b.dll", "dot.dll.", "what?.dll", "dot.dll.dll"):
        with open(f"/opt/sage/lib/{name}", "wb") as new, open(SOURCES[0], "rb") as old:
            new.write(old.read())
    shell("rebaser run /opt/sage --suffix .dll. --json")
    shell("rebaser forget /opt/sage --yes; ls -A /opt/sage/var/lib /opt/sage/var/lock")


def with_rebases_database() -> None:
    """Neither of `rebase -s`, `rebase -M -T`, `peflags` and `rebaser run` undoes another."""
    make_tree("/opt/db")
    shell("find /usr/bin /usr/lib -name '*.dll' | grep -v cygwin1.dll >/tmp/system")
    shell("rebase -s -b 0x600000000 -T /tmp/system")
    shell("rebaser info --db /etc/rebase.db.x86_64 --json")
    shell("sha1sum -b $(cat /tmp/system) >/tmp/placed")
    shell("rebaser run /opt/db --json")
    shell("sha1sum /opt/db/lib/* >/tmp/run")
    shell("ls /opt/db/lib/*.dll >/tmp/list; rebase -M -T /tmp/list")
    shell("cat /tmp/system /tmp/list >/tmp/all; rebase -s -T /tmp/all")
    shell("sha1sum -c --quiet /tmp/run")
    shell("peflags -d0 /opt/db/lib/*.dll")
    shell("sha1sum -c --quiet /tmp/run # after peflags")
    shell("rebaser run /opt/db --json # again")
    shell("peflags -d1 /opt/db/lib/_csv.dll; rebaser run /opt/db --json # peflags -d1")
    shell("rebase -s -T /tmp/all # again")
    shell("sha1sum -c --quiet /tmp/run # in the end")
    shell("sha1sum -c --quiet /tmp/placed # in the end")


def with_noacl() -> None:
    """A tree on a mount without Windows' access lists, as MSYS2 has them all."""
    os.makedirs("/opt/noacl")
    os.makedirs("/mnt/noacl")
    shell('mount -f -o noacl "$(cygpath -w /opt/noacl)" /mnt/noacl; mount | grep noacl')
    make_tree("/mnt/noacl/tree")
    shell("rebaser run /mnt/noacl/tree --json")
    shell("rebaser run /mnt/noacl/tree --json # again")
    shell("umount /mnt/noacl")


FORKS = """
import _bz2, _ctypes, _ssl, _sqlite3, os, sys
def forks():
    return sum(os.waitpid(os.fork() or os._exit(7), 0)[1] == 7 << 8 for _ in range(10))
if len(sys.argv) > 1:
    # All that rebaser loads only for work: Wine lets nobody rename over it, and so it is in use
    # when nobody works, too.
    import fcntl, hashlib, heapq, json, lzma, mmap, random, resource, struct, tempfile, uuid, zlib
    print("ready", flush=True)
    sys.stdin.readline()
print(forks(), flush=True)
"""


def whole_root() -> None:
    """`rebaser run /` from a shell, while an old shell and an old Python go on."""
    keep = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    loop = "echo ready; read line; for i in 1 2 3 4 5 6 7 8 9 10; do (exit 7); printf $?; done"
    old = {
        "old bash": subprocess.Popen(["bash", "-c", loop], **keep),  # type: ignore[call-overload]
        "old python": subprocess.Popen(  # type: ignore[call-overload]
            [sys.executable, "-c", FORKS, "wait"], **keep
        ),
    }
    for process in old.values():
        process.stdout.readline()
    for number in ("first", "second", "third"):
        shell(f"rebaser run / --json # {number}", timeout=900)
    for name, process in old.items():
        out, _ = process.communicate("go\n", timeout=120)
        told[name] = process.returncode, out, ""
    shell("rebaser check / --json")
    # A drive is none of the tree that / is by now.
    make_tree("/opt/drive")
    shell('drive="/cygdrive/z$(cygpath -m /opt/drive | cut -c3-)"; rebaser run "$drive" --json')
    shell("for i in 1 2 3 4 5 6 7 8 9 10; do (exit 7); printf $?; done")
    told["new python"] = shell(f"exec python3 -c '{FORKS}'")
    shell(
        "exec perl -MPOSIX -MSocket -e 'for (1..10) { my $child = fork(); "
        "POSIX::_exit(7) unless $child; waitpid($child, 0); print $? >> 8 }'"
    )
    shell("git init -q /tmp/repository && git -C /tmp/repository status --short --branch")


if __name__ == "__main__":
    for part in sys.argv[1:]:
        globals()[part]()
    with open("/tmp/told", "w", encoding="utf-8") as file:
        json.dump(told, file)
