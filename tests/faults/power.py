"""Loss of power, replayed from what a real service did to its disk.

``strace`` records each write, fsync, rename, mkdir and unlink of the service's processes, Python's
and SQLite's alike, and each C-STORE-RSP that left. The recorded sequence is replayed into a model
of a disk that promises no more than POSIX does: what a file was given is certain after its
fsync, a name after an fsync of its folder, and of the rest anything may be there or not, in any
order and torn between blocks (CrashMonkey and ALICE, OSDI 2018 and 2014, do the same). Cut after
any operation, the model gives the folders that a machine could wake up with.

The model is proven against the real folder: replayed to its end it must equal it byte for byte.
"""

import os
import random
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_CALLS = (
    "openat,open,creat,write,pwrite64,writev,pwritev,ftruncate,fallocate,fsync,fdatasync,"
    "sync_file_range,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,link,linkat,"
    "sendto,sendmsg"
)
_LINE = re.compile(r"(\d+)\s+(.*)")
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>(.*)")
_CALL = re.compile(r"(\w+)\((.*)\)\s+=\s+(-?\d+)", re.DOTALL)
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_DESCRIPTOR = re.compile(r"^(\d+)<((?:\\x[0-9a-f]{2})*)")
BLOCK = 4_096
"""Bytes of a write that reach the disk together or not at all."""


@dataclass(frozen=True)
class Operation:
    """One thing that was done to the disk, or an answer that left."""

    kind: str
    path: str
    started: int
    """Its place among all starts and ends; what began after an fsync did is not in it."""
    ended: int
    offset: int = 0
    data: bytes = b""
    other: str = ""

    def __str__(self) -> str:
        """As a failure tells it."""
        return f"{self.kind} {self.path or self.other}"


class Recording:
    """A service under ``strace``.

    Parameters
    ----------
    command : sequence of str
    environment : mapping of str to str
    home : Path
        What is written below it is recorded.
    file : Path
        Where the trace goes.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], home: Path, file: Path
    ) -> None:
        self._home, self._file = home, file
        with file.with_suffix(".log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "strace", "-f", "-y", "-xx", "-s", "1000000", "--seccomp-bpf",
                    "-e", f"trace={_CALLS}", "-o", str(file), "--", *command,
                ],
                env=dict(environment), cwd=home.parent, stdin=subprocess.DEVNULL, stderr=log,
            )  # fmt: skip

    def stop(self) -> list[Operation]:
        """End the service in good order; what it did."""
        listed = subprocess.run(
            ["ps", "--ppid", str(self._process.pid), "-o", "pid="],
            capture_output=True, text=True, check=True,
        ).stdout.split()  # fmt: skip
        os.kill(int(listed[0]), signal.SIGTERM)
        assert self._process.wait(120) == 0
        return operations(self._file.read_text(), self._home)

    def kill(self) -> None:
        """End it at once, if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def operations(trace: str, home: Path) -> list[Operation]:
    """The operations below a home, and the answers, in the order in which they took effect."""
    found: list[Operation] = []
    unfinished: dict[str, tuple[str, int]] = {}
    for place, line in enumerate(trace.splitlines()):
        matched = _LINE.match(line)
        if matched is None:
            continue
        thread, told = matched.groups()
        started = place
        if told.endswith("<unfinished ...>"):
            text = told.removesuffix("<unfinished ...>").rstrip()
            unfinished[thread] = text, place
            # An answer is out as soon as it begins to go out.
            found += _answers(text, place)
            continue
        resumed = _RESUMED.match(told)
        if resumed is not None:
            before, started = unfinished.pop(thread, ("", place))
            told = before + resumed.group(1)
        else:
            found += _answers(told, place)
        called = _CALL.match(told)
        if called is not None and int(called.group(3)) >= 0:
            found += _operation(called.group(1), called.group(2), started, place, home)
    return found


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _answers(told: str, place: int) -> Iterator[Operation]:
    """A C-STORE-RSP of status Success (PS3.7 9.3.1.2), as the UID that it acknowledges."""
    if not told.startswith(("sendto(", "sendmsg(", "write(")):
        return
    for text in _TEXT.findall(told):
        data = _bytes(text)
        if data[:2] != b"\x04\x00" or len(data) < 12:
            continue
        elements, at = {}, 12
        while at + 8 <= len(data):
            group, number, length = struct.unpack_from("<HHI", data, at)
            if group:
                break
            elements[number] = data[at + 8 : at + 8 + length]
            at += 8 + length
        if elements.get(0x0100) == b"\x01\x80" and elements.get(0x0900) == b"\0\0":
            uid = elements[0x1000].rstrip(b"\0 ").decode()
            yield Operation("answer", "", place, place, other=uid)


def _operation(  # noqa: C901
    name: str, arguments: str, started: int, ended: int, home: Path
) -> Iterator[Operation]:
    texts = [_bytes(text) for text in _TEXT.findall(arguments)]
    numbers = [int(part) for part in re.findall(r"(?<=, )\d+(?=,|$)", arguments)]
    held = _DESCRIPTOR.match(arguments)

    def ours(raw: bytes) -> str:
        path = raw.decode(errors="replace")
        inside = path == str(home) or path.startswith(f"{home}/")
        # Model versions are copies of what is installed; shared memory is made anew.
        apart = path.startswith(f"{home}/models") or path.endswith("-shm")
        return path if inside and not apart else ""

    def on_disk(kind: str, raw: bytes, **more: object) -> Iterator[Operation]:
        path = ours(raw)
        if path:
            yield Operation(kind, path, started, ended, **more)  # type: ignore[arg-type]

    if name in {"fsync", "fdatasync"} and held:
        raw = _bytes(held.group(2))
        # A sync of the folder that the home is in keeps the home's own name.
        if raw.decode() == str(home.parent):
            yield Operation("fsync", str(home.parent), started, ended)
        yield from on_disk("fsync", raw)
    elif name in {"write", "pwrite64"} and held and texts:
        yield from on_disk(
            "write", _bytes(held.group(2)), data=texts[0],
            offset=numbers[-1] if name == "pwrite64" else -1,
        )  # fmt: skip
    elif name == "ftruncate" and held:
        yield from on_disk("truncate", _bytes(held.group(2)), offset=numbers[-1])
    elif name in {"openat", "open"} and "O_CREAT" in arguments:
        yield from on_disk("create", texts[0], other="O_TRUNC" if "O_TRUNC" in arguments else "")
    elif name in {"rename", "renameat", "renameat2"}:
        if ours(texts[0]) and ours(texts[1]):
            yield from on_disk("rename", texts[0], other=texts[1].decode())
    elif name in {"unlink", "unlinkat", "rmdir"}:
        yield from on_disk("unlink", texts[0])
    elif name in {"mkdir", "mkdirat"}:
        yield from on_disk("mkdir", texts[0])
    elif held and name in {"writev", "pwritev", "fallocate"} and ours(_bytes(held.group(2))):
        raise NotImplementedError(f"the model of a disk knows no {name}")


@dataclass
class _Node:
    """A file or a folder: what is certain, and what was done since, with its place."""

    folder: bool
    data: bytes = b""
    names: dict[str, "_Node"] = field(default_factory=dict)
    pending: list[tuple[int, Callable[["_Node"], None]]] = field(default_factory=list)
    now: "_Node | None" = None
    end: int = 0
    """Where write(2) goes on."""

    def does(self, place: int, act: Callable[["_Node"], None]) -> None:
        """Do it to what programs see, and note it."""
        if self.now is None:
            self.now = _Node(self.folder, self.data, dict(self.names))
        act(self.now)
        self.pending.append((place, act))

    @property
    def seen(self) -> "_Node":
        """What programs see."""
        return self.now or self

    def sync(self, place: int) -> None:
        """What was done before a place is certain."""
        for _, act in [each for each in self.pending if each[0] < place]:
            act(self)
        self.pending = [each for each in self.pending if each[0] >= place]


def _write(offset: int, data: bytes) -> Callable[[_Node], None]:
    def act(node: _Node) -> None:
        node.data = node.data[:offset].ljust(offset, b"\0") + data + node.data[offset + len(data) :]

    return act


def _truncate(size: int) -> Callable[[_Node], None]:
    def act(node: _Node) -> None:
        node.data = node.data[:size].ljust(size, b"\0")

    return act


def _link(name: str, child: _Node) -> Callable[[_Node], None]:
    def act(node: _Node) -> None:
        node.names[name] = child

    return act


def _unlink(name: str) -> Callable[[_Node], None]:
    def act(node: _Node) -> None:
        node.names.pop(name, None)

    return act


Keep = Callable[[_Node], bool]
"""Whether one thing that is not certain, done to a file or a folder, is there."""


class Disk:
    """The model of a disk that holds one home."""

    def __init__(self, home: Path) -> None:
        self._above = home.parent
        self._root = _Node(folder=True)

    def do(self, operation: Operation) -> None:  # noqa: C901
        """Replay one operation."""
        at, path = operation.ended, operation.path
        match operation.kind:
            case "create":
                known = self._find(path)
                if known is None:
                    self._name(at, path, _Node(folder=False))
                elif operation.other:
                    known.end = 0
                    known.does(at, _truncate(0))
            case "mkdir":
                self._name(at, path, _Node(folder=True))
            case "write":
                node = self._there(path)
                offset = node.end if operation.offset < 0 else operation.offset
                if operation.offset < 0:
                    node.end += len(operation.data)
                # A block is whole or not there.
                place = 0
                while place < len(operation.data):
                    size = BLOCK - (offset + place) % BLOCK
                    node.does(at, _write(offset + place, operation.data[place : place + size]))
                    place += size
            case "truncate":
                self._there(path).does(at, _truncate(operation.offset))
            case "rename":
                node = self._there(path)
                self._name(at, operation.other, node)
                self._forget(at, path)
            case "unlink":
                self._forget(at, path)
            case "fsync":
                node = self._root if path == str(self._above) else self._there(path)
                node.sync(operation.started)

    def write(self, folder: Path, keep: Keep) -> None:
        """Make the folders and files that a machine could wake up with."""
        self._make(self._root, folder, keep)

    def _make(self, node: _Node, path: Path, keep: Keep) -> None:
        survived = _Node(node.folder, node.data, dict(node.names))
        for _, act in node.pending:
            if keep(node):
                act(survived)
        if node.folder:
            path.mkdir(exist_ok=True)
            for name, child in survived.names.items():
                self._make(child, path / name, keep)
        else:
            path.write_bytes(survived.data)

    def _parts(self, path: str) -> tuple[str, ...]:
        return Path(path).relative_to(self._above).parts

    def _find(self, path: str) -> _Node | None:
        node = self._root
        for part in self._parts(path):
            child = node.seen.names.get(part)
            if child is None:
                return None
            node = child
        return node

    def _there(self, path: str) -> _Node:
        node = self._find(path)
        assert node is not None, f"the trace uses {path}, which the model does not have"
        return node

    def _name(self, place: int, path: str, node: _Node) -> None:
        parent = self._find(str(Path(path).parent)) if len(self._parts(path)) > 1 else self._root
        assert parent is not None, path
        parent.does(place, _link(Path(path).name, node))

    def _forget(self, place: int, path: str) -> None:
        parent = self._find(str(Path(path).parent))
        assert parent is not None, path
        parent.does(place, _unlink(Path(path).name))


def everything(_node: _Node) -> bool:
    """All that was done is there, as after ``kill -9``."""
    return True


def nothing(_node: _Node) -> bool:
    """Only what is certain is there."""
    return False


def names(node: _Node) -> bool:
    """Folders are up to date, the files in them are not."""
    return node.folder


def contents(node: _Node) -> bool:
    """Files are up to date, the folders that name them are not."""
    return not node.folder


def any_of(seed: int) -> Keep:
    """Of each thing that is not certain, chance says whether it is there."""
    chance = random.Random(seed)
    return lambda _node: chance.random() < 0.5


POLICIES: Mapping[str, Keep] = {
    "everything": everything, "nothing": nothing, "names": names, "contents": contents,
}  # fmt: skip

SERVE = (sys.executable, "-m", "triage", "serve")
