"""Attacks beside the limits: pairs of sockets, memory of the kernel, limits that move, locks, work after a cell."""

from __future__ import annotations

from tests.attacks.programs import attack
from tests.attacks.victims import Attack
from workers.sandbox.settings import SandboxStatus as Status

_FILL = """
def fill(end):
    end.setblocking(False)
    total = 0
    while True:
        try:
            total += end.send(b'x' * 65536)
        except BlockingIOError:
            return total
        except OSError as error:
            if error.errno != errno.EMSGSIZE: raise
            return total
"""
_DATAGRAMS = "one, two = socket.socketpair(type=socket.SOCK_DGRAM)\n"

PAIRS = [
    attack(
        "send from a datagram pair to a Unix socket",
        _DATAGRAMS + "one.sendto(b'x', aim['datagrams'])",
    ),
    attack(
        "send from a datagram pair to an abstract socket",
        _DATAGRAMS + "one.sendto(b'x', '\\0' + aim['abstract_datagrams'])",
    ),
    attack(
        "send a message from a datagram pair",
        _DATAGRAMS + "one.sendmsg([b'x'], [], 0, aim['datagrams'])",
    ),
    attack(
        "send many messages from a datagram pair",
        _DATAGRAMS
        + """
class Vec(ctypes.Structure):
    _fields_ = [('base', ctypes.c_char_p), ('size', ctypes.c_size_t)]
class Message(ctypes.Structure):
    _fields_ = [('name', ctypes.c_char_p), ('name_size', ctypes.c_uint32), ('vec', ctypes.POINTER(Vec)),
                ('num', ctypes.c_size_t), ('control', ctypes.c_void_p), ('control_size', ctypes.c_size_t),
                ('flags', ctypes.c_int), ('sent', ctypes.c_uint64)]
name = struct.pack('H', 1) + aim['datagrams'].encode() + b'\\0'
message = Message(name, len(name), ctypes.pointer(Vec(b'x', 1)), 1, None, 0, 0, 0)
sysc((307, 269), one.fileno(), ctypes.byref(message), 1, 0)
""",
    ),
    attack(
        "connect an end of a datagram pair",
        _DATAGRAMS + "one.connect(aim['datagrams'])\none.send(b'x')",
    ),
    attack(
        "a datagram pair by its number, with flags",
        """
ends = (ctypes.c_int * 2)()
sysc((53, 199), 1, 2 | 0o2004000, 0, ends)
socket.socket(fileno=ends[0]).sendto(b'x', aim['datagrams'])
""",
    ),
    attack("a raw pair", "socket.socketpair(type=socket.SOCK_RAW)\nreached()"),
    attack(
        "a pair of packets in order", "socket.socketpair(type=socket.SOCK_SEQPACKET)\nreached()"
    ),
    attack("name an end of a pair", "socket.socketpair()[0].bind('\\0' + aim['stray'])\nreached()"),
    attack(
        "send from a stream pair with an address",
        """
one, two = socket.socketpair()
name = struct.pack('H', 1) + aim['socket'].encode() + b'\\0'
try:
    sysc((44, 206), one.fileno(), b'x', 1, 0, name, len(name))
except OSError as error:
    if error.errno not in (errno.EISCONN, errno.EOPNOTSUPP): raise
reached()  # that far, only the kind of the socket holds it
""",
    ),
    attack(
        "hide descriptors in flight",
        """
one, two = socket.socketpair()
socket.send_fds(one, [b'x'], list(os.pipe()))
reached()
""",
    ),
]

KERNEL_MEMORY = [
    attack(
        "hoard in socket buffers",
        _FILL
        + """
held, total = [], 0
try:
    while total < 40 << 20:
        held += socket.socketpair()
        total += fill(held[-1]) + fill(held[-2])
finally:
    if total >= 40 << 20: reached(total)
""",
    ),
    attack(
        "enlarge a socket's buffer",
        """
one, two = socket.socketpair()
before = one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 28)
if one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > before: reached()
""",
    ),
    attack(
        "a filter on a socket",
        """
code = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 0xFFFF))
program = struct.pack('HxxxxxxP', 1, ctypes.addressof(code))
socket.socketpair()[0].setsockopt(socket.SOL_SOCKET, 26, program)
reached()
""",
    ),
    attack(
        "hoard in locks of ranges",
        """
import fcntl
file, other = open(os.__file__, 'rb'), open(os.__file__, 'rb')
for i in range(2000):
    fcntl.fcntl(file, fcntl.F_SETLK, struct.pack('hhqqi4x', fcntl.F_RDLCK, 0, 2 * i, 1, 0))
found = fcntl.fcntl(other, 36, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 3998, 1, 0))
if struct.unpack('hhqqi4x', found)[0] != fcntl.F_UNLCK: reached()
""",
    ),
    attack(
        "hoard in signals that wait",
        """
number = signal.SIGRTMIN + 4
signal.pthread_sigmask(signal.SIG_BLOCK, {number})
for i in range(2000):
    os.kill(os.getpid(), number)
count = 0
while signal.sigtimedwait({number}, 0): count += 1
if count > 500: reached(count)
""",
    ),
    attack(
        "hoard in empty files",
        """
for i in range(aim['many']):
    os.close(os.open(f"/tmp/{aim['stray']}-{i}", os.O_CREAT | os.O_WRONLY))
reached()
for i in range(aim['many']):
    os.unlink(f"/tmp/{aim['stray']}-{i}")
""",
    ),
    attack(
        "hoard in symbolic links",
        """
for i in range(aim['many']):
    os.symlink('x' * 100, f"/tmp/{aim['stray']}-{'l' * 150}-{i}")
reached()
for i in range(aim['many']):
    os.unlink(f"/tmp/{aim['stray']}-{'l' * 150}-{i}")
""",
    ),
    attack(
        "hoard in System V message queues",
        "sysc((71, 188), sysc((68, 186), 0, 0o1600), 0, 0)\nreached()",
    ),
    attack(
        "hoard in semaphores",
        "number = sysc((64, 190), 0, 1000, 0o1600)\nreached()\nsysc((66, 191), number, 0, 0)",
    ),
    attack(
        "hoard in timers",
        """
number = ctypes.c_int()
for _ in range(100):
    sysc((222, 107), 1, 0, ctypes.byref(number))
reached()
""",
    ),
    attack("asynchronous reads", "sysc((206, 0), 128, ctypes.byref(ctypes.c_ulong()))\nreached()"),
    attack("secret memory", "sysc(447, 0)\nreached()"),
    attack(
        "a ruleset of Landlock",
        "sysc(444, ctypes.create_string_buffer(struct.pack('Q', 1)), 8, 0)\nreached()",
    ),
]

LIMITS = [
    attack(
        "raise every limit",
        """
for name in ('CPU', 'AS', 'FSIZE', 'NOFILE', 'MSGQUEUE', 'SIGPENDING', 'MEMLOCK', 'RTPRIO', 'NICE', 'STACK', 'CORE'):
    which = getattr(resource, 'RLIMIT_' + name)
    soft, hard = resource.getrlimit(which)
    if soft == resource.RLIM_INFINITY or soft != hard:
        reached(name)
    for wanted in ((soft + 1, hard), (soft + 1, soft + 1), (-1, -1)):
        try:
            resource.setrlimit(which, wanted)
        except (OSError, ValueError):
            continue
        reached(name)
""",
    ),
    attack(
        "change how it is scheduled",
        "sysc((144, 119), 0, 3, ctypes.byref(ctypes.c_int(0)))\nreached()",
    ),
    attack("open more files than allowed", "held = [os.pipe() for _ in range(100)]\nreached()"),
]

LOCKS = [
    attack(
        "lock a library file",
        "import fcntl\nfcntl.flock(os.open(os.__file__, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)\nreached()",
    ),
    attack(
        "lock a library folder",
        "import fcntl\nfcntl.flock(os.open(os.path.dirname(os.__file__), os.O_RDONLY), fcntl.LOCK_SH)\nreached()",
    ),
    attack(
        "lock a range of a library file",
        """
import fcntl
file, other = open(os.__file__, 'rb'), open(os.__file__, 'rb')
fcntl.fcntl(file, fcntl.F_SETLKW, struct.pack('hhqqi4x', fcntl.F_RDLCK, 0, 0, 0, 0))
found = fcntl.fcntl(other, 36, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0))
if struct.unpack('hhqqi4x', found)[0] != fcntl.F_UNLCK: reached()
""",
    ),
    attack(
        "lock a library file by its open description",
        """
import fcntl
file = open(os.__file__, 'rb')
fcntl.fcntl(file, 37, struct.pack('hhqqi4x', fcntl.F_RDLCK, 0, 0, 0, 0))
reached()
""",
    ),
    attack(
        "a lease on a file",
        """
import fcntl
for path in (aim['secret'], os.__file__, '/tmp/' + aim['stray']):
    try:
        fcntl.fcntl(os.open(path, os.O_RDONLY | (os.O_CREAT if 'tmp' in path else 0)), 1024, fcntl.F_RDLCK)
        reached(path)
    except OSError as error:
        last = error
raise last
""",
    ),
    attack(
        "be told about a library folder",
        "import fcntl\nfcntl.fcntl(os.open(os.path.dirname(os.__file__), os.O_RDONLY), 1026, 1)\nreached()",
    ),
    attack(
        "signals from a descriptor",
        "import fcntl\nfcntl.fcntl(os.pipe()[0], 10, signal.SIGUSR1)\nreached()",
    ),
]


_IN_THE_PAUSE = """
found = sum(pause[0] + 0.02 < at < pause[1] for at in turns)
if found > 2: reached(found)
"""


def later(name: str, code: str, then: str = _IN_THE_PAUSE) -> Attack:
    """An attack in a session: `turns` notes when it computed, and `then` is its next cell, after a pause."""
    return Attack(name, "turns = []\n" + code, frozenset({Status.OK}), then)


_GO_ON = """
def go_on():
    while len(turns) < 100000:
        time.sleep(0.002)
        turns.append(time.monotonic())
threading.Thread(target=go_on, daemon=True).start()
"""
LATER = [
    later("compute on in a thread after the cell", _GO_ON),
    later(
        "compute on outside the interpreter after the cell",
        """
import hashlib
def go_on():
    while True:
        hashlib.pbkdf2_hmac('sha256', b'x', b'y', 3000)
        turns.append(time.monotonic())
threading.Thread(target=go_on, daemon=True).start()
""",
    ),
    later(
        "compute on in a handler of a timer's signal",
        """
signal.signal(signal.SIGALRM, lambda *_: turns.append(time.monotonic()))
signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
""",
    ),
    later(
        "compute on in a loop of events",
        """
import asyncio
async def go_on():
    while True:
        await asyncio.sleep(0.002)
        turns.append(time.monotonic())
threading.Thread(target=lambda: asyncio.run(go_on()), daemon=True).start()
""",
    ),
    later(
        "compute on with every signal blocked or ignored",
        """
for number in (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCONT):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
"""
        + _GO_ON,
    ),
    later(
        "raise the processor limit of a session",
        """
for which in (resource.RLIMIT_CPU, resource.RLIMIT_AS):
    soft, hard = resource.getrlimit(which)
    if soft != hard or soft == resource.RLIM_INFINITY: reached(which)
    try:
        resource.setrlimit(which, (-1, -1))
    except ValueError:
        continue
    reached(which)
""",
        "pass",
    ),
]
