"""The inner layer: limits its own process, reports ready, and only then reads and runs untrusted code.

Standard library only, and no import of ours: the parent sends this file, compiled, to a bare interpreter.
Protocol over the control socket: the parent, whom this side trusts, sends the policy and then jobs as
length-prefixed `marshal` data; this side, which nobody trusts, sends JSON lines: which layers hold, then
one line per call or cell. A program (`run`) gets no control socket at all: its exit code and its output
are its answer. Few modules are imported, because every execution pays for them.
"""

from __future__ import annotations

import builtins
import ctypes
import marshal
import os
import resource
import struct
import sys
import types
from collections.abc import Callable, Mapping
from typing import IO, Any

LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
READ_FILE, READ_DIR, MAKE_CHAR, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK = (
    1 << bit for bit in (2, 3, 6, 9, 10, 11)
)
FILE_RIGHTS = 0b110 | 1 << 14  # write, read, truncate: all that a rule on a single file may hold
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SIGKILL = 9
MAX_ERROR_CHARACTERS = 4000
MAX_CELLS = 256
"""A session's processor time as a whole, in cells that use all of theirs: what the kernel keeps for good."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def main(control: IO[bytes]) -> None:
    """Read the policy from `control`, apply it, answer, and serve the jobs that follow."""
    policy = receive(control)
    own = control.fileno()
    os.closerange(3, own)
    os.closerange(own + 1, 1024)
    sys.argv = [""]
    os.environ.pop("PWD", None)  # bwrap's
    os.chdir(policy["folder"])
    os.umask(0o077)
    for name, value in policy["limits"].items():
        limit(name, value)
    die_with_parent(policy["parent"])
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    hand_over(control, policy["watched"])
    abi = restrict_files(policy["readable"], policy["writable"]) if policy["landlock"] else 0
    _offer(policy["packages"])
    # What `site` would have added; a program that ends with exit() is no error.
    import _sitebuiltins

    for name in ("exit", "quit"):
        setattr(builtins, name, _sitebuiltins.Quitter(name, "Ctrl-D"))
    if policy["seccomp"]:
        filter_syscalls(policy["seccomp"])
    reply(control, {"ready": True, "landlock": abi, "seccomp": bool(policy["seccomp"])})
    for stream in (sys.stdout, sys.stderr):  # what was printed before a limit hit is not lost
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    job = receive(control)
    {"run": run_program, "call": answer_calls, "session": serve_cells}[job["kind"]](job, control)


def hand_over(control: IO[bytes], folder: str | None) -> None:
    """Give the parent what it watches and stops this process by: a descriptor of it, one of its private folder.

    They come with an empty line before the report: once the filter is on, no descriptor can be sent any more.
    """
    import _socket  # without what `socket` adds, and the time that it takes

    handed = [os.pidfd_open(os.getpid())]
    if folder is not None:
        handed.append(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
    channel = _socket.socket(fileno=os.dup(control.fileno()))
    rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"{len(handed)}i", *handed))
    channel.sendmsg([b" "], [rights])
    channel.close()
    for descriptor in handed:
        os.close(descriptor)


def limit(name: str, value: int) -> None:
    """Set a resource limit, soft and hard alike: code may raise what is soft. Never above what is allowed here."""
    which = getattr(resource, name)
    ceiling = resource.getrlimit(which)[1]
    if ceiling != resource.RLIM_INFINITY:
        value = min(value, ceiling)
    resource.setrlimit(which, (value, value))


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process together with the thread that started it."""
    _prctl(PR_SET_PDEATHSIG, SIGKILL)
    if os.getppid() != parent:  # it died before the call above took effect
        os._exit(1)


def restrict_files(readable: list[str], writable: list[str]) -> int:
    """Landlock: everything is refused but the given trees; returns the kernel's ABI, 0 where it has none."""
    abi = int(_libc.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1)))
    if abi < 1:
        return 0
    every = (1 << (13 if abi < 2 else 14 if abi < 3 else 15 if abi < 5 else 16)) - 1
    # Then, where the kernel knows them: TCP bind and connect; abstract Unix sockets and signals.
    attributes = struct.pack("=QQQ", every, 3, 3)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    ruleset = _checked(
        _libc.syscall(
            LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0)
        ),
        "landlock_create_ruleset",
    )
    read = READ_FILE | READ_DIR
    write = every & ~(1 | MAKE_CHAR | MAKE_SOCK | MAKE_FIFO | MAKE_BLOCK | 1 << 15)
    for paths, rights in ((readable, read), (writable, write)):
        for path in paths:
            _allow_beneath(ruleset, path, rights & every)
    _checked(_libc.syscall(LANDLOCK_RESTRICT, ruleset, ctypes.c_uint32(0)), "landlock_restrict")
    os.close(ruleset)
    return abi


def _allow_beneath(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not os.path.isdir(path):
        rights &= FILE_RIGHTS
    rule = struct.pack("=Qi", rights, descriptor)
    done = _libc.syscall(LANDLOCK_ADD, ruleset, ctypes.c_int(1), rule, ctypes.c_uint32(0))
    _checked(done, f"landlock_add_rule {path}")
    os.close(descriptor)


def filter_syscalls(program: list[list[Any]]) -> None:
    """Load a seccomp program; the operand "PID" stands for this process's number in its own namespace."""
    packed = b"".join(
        struct.pack("=HBBI", code, yes, no, os.getpid() if operand == "PID" else operand)
        for code, yes, no, operand in program
    )
    instructions = ctypes.create_string_buffer(packed, len(packed))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(instructions))
    _prctl(PR_SET_SECCOMP, 2, ctypes.create_string_buffer(header, len(header)))


def _prctl(option: int, *values: Any) -> None:
    padded = [v if isinstance(v, ctypes.Array) else ctypes.c_ulong(v) for v in values]
    padded += [ctypes.c_ulong(0)] * (4 - len(padded))
    _checked(_libc.prctl(ctypes.c_int(option), *padded), f"prctl {option}")


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _offer(packages: Mapping[str, str]) -> None:
    """Make packages importable by name alone: the folder that they lie in stays unreadable."""
    if not packages:
        return
    from importlib.util import spec_from_file_location

    class Finder:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> Any:
            file = packages.get(name) if path is None else None
            if file is None:
                return None
            inner = [os.path.dirname(file)] if file.endswith("__init__.py") else None
            return spec_from_file_location(name, file, submodule_search_locations=inner)

    sys.meta_path.append(Finder)


def receive(control: IO[bytes]) -> Any:
    """The next message of the parent; ends this process when the parent hung up."""
    line = control.readline()
    if not line:
        os._exit(0)
    return marshal.loads(control.read(int(line)))  # nosec B302 # plain values of our own process


def _encoder() -> Callable[[Any, int], Any]:
    """Return what `json.dumps(allow_nan=False)` calls, without the 8 ms that importing the package takes."""
    import _json

    def refuse(value: object) -> None:
        raise TypeError(f"{type(value).__name__} is not plain JSON")

    make: Any = _json.make_encoder
    text: Any = _json.encode_basestring_ascii
    return make({}, refuse, text, None, ": ", ", ", False, False, False)  # type: ignore[no-any-return]


def reply(control: IO[bytes], message: Mapping[str, Any]) -> None:
    """Send one strict JSON line.

    Raises:
        ValueError, TypeError, RecursionError: `message` is not plain JSON; nothing was sent.
    """
    line = memoryview("".join(_encoder()(message, 0)).encode() + b"\n")
    while line:
        line = line[os.write(control.fileno(), line) :]


def described(error: BaseException, source: str) -> str:
    """The traceback without frames of ours, as Python prints it, with the lines of `source`."""
    try:
        import linecache
        import traceback

        linecache.cache["<code>"] = (len(source), None, source.splitlines(True), "<code>")
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename != "<code>":
            trace = trace.tb_next
        text = "".join(traceback.format_exception(type(error), error, trace))
    except BaseException as second:  # its own __str__ raised, or memory is out
        text = f"{type(error).__name__} ({type(second).__name__} while it was described)"
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text[-MAX_ERROR_CHARACTERS:]


def new_module(name: str) -> types.ModuleType:
    """An empty module that is found under `name`, as dataclasses and pickle expect."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    return module


def use_cpu_limit(job: Mapping[str, Any], times: int = 1) -> None:
    """Count processor time from here: what the start used is ours, not the code's."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = used.ru_utime + used.ru_stime
    limit("RLIMIT_CPU", int(-(-(spent + times * job["cpu_seconds"]) // 1)))


def run_program(job: Mapping[str, Any], control: IO[bytes]) -> None:
    """Run a whole program; it ends as any Python program does."""
    use_cpu_limit(job)
    control.close()
    source = job["code"]
    module = new_module("__main__")
    try:
        exec(compile(source, "<code>", "exec", dont_inherit=True), module.__dict__)  # nosec B102 # its purpose
    except SystemExit:
        raise
    except BaseException as error:
        text = described(error, source)
        sys.stdout.flush()
        sys.stderr.write(text)
        sys.exit(1)


def answer_calls(job: Mapping[str, Any], control: IO[bytes]) -> None:
    """Define what the code defines, then call one function per request and send back plain values."""
    use_cpu_limit(job)
    os.dup2(2, 1)  # what the code prints is no answer
    source = job["code"]
    module = new_module("candidate")
    try:
        exec(compile(source, "<code>", "exec", dont_inherit=True), module.__dict__)  # nosec B102 # its purpose
        function = _find(module, job["function"])
    except BaseException as error:
        reply(control, {"undefined": described(error, source)})
        os._exit(0)
    for identifier, arguments in job["calls"]:
        try:
            value = function(*arguments)
        except BaseException as error:
            reply(control, {"id": identifier, "raised": described(error, source)})
            continue
        try:
            reply(control, {"id": identifier, "value": value})
        except BaseException as error:
            text = f"returned what is not plain JSON: {type(error).__name__}: {error}"
            reply(control, {"id": identifier, "bad": text[:300]})
    os._exit(0)


def _find(module: types.ModuleType, path: str) -> Callable[..., Any]:
    found: Any = module
    for name in path.split("."):
        if isinstance(found, type):
            found = found()
        if not hasattr(found, name):
            raise NameError(f"the code defines no {path!r}")
        found = getattr(found, name)
    if not callable(found):
        raise TypeError(f"{path!r} is not callable")
    return found  # type: ignore[no-any-return]


def serve_cells(job: Mapping[str, Any], control: IO[bytes]) -> None:
    """Run cells that share one namespace; the value of a last bare expression is printed, as in a console."""
    module = new_module("__main__")
    # The limit of each cell is kept from outside: one that moves in here is one that the code may move.
    use_cpu_limit(job, MAX_CELLS)
    while True:
        message = {"id": job["id"]}
        try:
            run_cell(job["code"], module.__dict__)
        except SystemExit as error:
            if error.code not in (None, 0):
                message["raised"] = f"SystemExit: {error.code}"[:300]
        except BaseException as error:
            message["raised"] = described(error, job["code"])
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError) as error:  # the code closed or replaced them
            message.setdefault("raised", f"{type(error).__name__}: {error}")
        reply(control, message)
        job = receive(control)


def run_cell(source: str, namespace: dict[str, Any]) -> None:
    """Execute statements; print the `repr` of a last expression that is not None."""
    import ast

    tree = ast.parse(source, "<code>")
    last: ast.Expression | None = None
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        final = tree.body.pop()
        assert isinstance(final, ast.Expr)
        last = ast.Expression(final.value)
    exec(compile(tree, "<code>", "exec", dont_inherit=True), namespace)  # nosec B102 # its purpose
    if last is not None:
        value = eval(compile(last, "<code>", "eval", dont_inherit=True), namespace)  # nosec B307 # its purpose
        if value is not None:
            sys.stdout.write(f"{value!r}\n")
