"""Attacks on processes, memory, time and output: each bounded in itself, for the day on which nothing holds it."""

from __future__ import annotations

from tests.attacks.victims import Attack
from workers.sandbox.settings import SandboxStatus as Status

OK, RAISED, KILLED = Status.OK, Status.RAISED, Status.KILLED
STOPPED = (Status.WALL_LIMIT, Status.CPU_LIMIT)
TOO_BIG = (Status.MEMORY_LIMIT, Status.RAISED, Status.KILLED)


def attack(name: str, code: str, *statuses: Status) -> Attack:
    return Attack(name, code, frozenset(statuses))


PROCESSES = [
    attack(
        "fork bomb",
        """
for _ in range(300):
    if os.fork() == 0:
        time.sleep(0.3)
        os._exit(0)
reached()
""",
    ),
    attack(
        "daemon by double fork",
        """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(5)
    os._exit(0)
reached()
time.sleep(0.1)
""",
    ),
    attack(
        "child that keeps stdout open",
        """
if os.fork() == 0:
    time.sleep(5)
    os._exit(0)
reached()
""",
    ),
    attack(
        "fork by the bare system call",
        """
if sysc((56, 220), 17, 0, 0, 0, 0) == 0:
    os._exit(0)
reached()
""",
    ),
    attack(
        "fork by clone3",
        """
args = (ctypes.c_uint64 * 11)(0, 0, 0, 0, 17)
if sysc(435, args, 88) == 0:
    os._exit(0)
reached()
""",
    ),
    attack(
        "clone without sharing, marked as a thread of a new namespace",
        """
if sysc((56, 220), 0x10000000 | 17, 0, 0, 0, 0) == 0:
    os._exit(0)
reached()
""",
    ),
    attack(
        "zombies",
        """
for _ in range(50):
    if os.fork() == 0:
        os._exit(0)
reached()
""",
    ),
    attack(
        "subprocess",
        "import subprocess\nprint(subprocess.run(['/bin/echo', 'REACHED'], stdout=1))",
    ),
    attack("posix_spawn", "os.posix_spawn('/bin/echo', ['echo', 'REACHED'], {})\ntime.sleep(0.2)"),
    attack("exec", "os.execv('/bin/echo', ['echo', 'REACHED'])"),
    attack(
        "exec a setuid program", "os.execv('/usr/bin/su', ['su', '--version'])\nreached()", RAISED
    ),
    attack(
        "exec a dropped script",
        """
for folder in ('/tmp', aim['folder'], '/dev/shm', '/var/tmp'):
    try:
        path = folder + '/dropped-' + aim['stray']
        with open(path, 'w') as f:
            f.write('#!/bin/sh\\nrm -f "$0"; echo REACHED\\n')
        os.chmod(path, 0o755)
    except OSError:
        continue
    os.execv(path, [path])
""",
    ),
    attack(
        "exec from memory",
        """
fd = sysc((319, 279), b'x', 0)
os.write(fd, open('/bin/echo', 'rb').read())
argv = (ctypes.c_char_p * 3)(b'echo', b'REACHED', None)
sysc((322, 281), fd, b'', argv, None, 0x1000)
""",
    ),
    attack(
        "exec through the loader of a library folder",
        """
loader = '/lib64/ld-linux-x86-64.so.2' if x86 else '/lib/ld-linux-aarch64.so.1'
os.execv(loader, [loader, '/bin/echo', 'REACHED'])
""",
    ),
    attack(
        "thread bomb",
        """
threading.stack_size(65536)
started = 0
def idle():
    time.sleep(0.7)
try:
    for _ in range(400):
        threading.Thread(target=idle, daemon=True).start()
        started += 1
finally:
    if started > 2 * aim['max_threads']:
        reached(started)
        os._exit(0)
""",
    ),
    attack("a session of its own", "if os.fork() == 0:\n    os.setsid()\n    reached()"),
]

MEMORY = [
    attack(
        "memory bomb",
        """
held = []
while len(held) < 48:
    held.append(bytearray(b'x') * (64 << 20))
    if len(held) * 64 > aim['memory_mb'] + 64:
        reached(len(held) * 64)
        break
""",
        *TOO_BIG,
        *STOPPED,
    ),
    attack(
        "map without touching", "mmap.mmap(-1, (aim['memory_mb'] + 64) << 20)\nreached()", *TOO_BIG
    ),
    attack(
        "memory by ten processes",
        """
for _ in range(10):
    if os.fork() == 0:
        held = bytearray(b'x') * (120 << 20)
        time.sleep(0.3)
        os._exit(0)
reached()
""",
    ),
    attack(
        "memory by ten threads",
        """
def hold():
    held = bytearray(b'x') * (64 << 20)
    time.sleep(0.5)
    return held
done = []
def note():
    done.append(len(hold()))
threads = [threading.Thread(target=note) for _ in range(10)]
for t in threads: t.start()
for t in threads: t.join()
if sum(done) > (aim['memory_mb'] + 64) << 20: reached()
""",
    ),
    attack(
        "hoard in memfds",
        """
for _ in range(6):
    fd = sysc((319, 279), b'x', 0)
    for _ in range(64):
        os.write(fd, b'x' * (1 << 20))
    reached()
""",
    ),
    attack(
        "hoard in System V segments",
        """
for _ in range(6):
    number = sysc((29, 194), 0, 64 << 20, 0o1600)
    sysc((31, 195), number, 0, 0)
    reached()
""",
    ),
    attack(
        "hoard in /dev/shm",
        """
path = '/dev/shm/' + aim['stray']
with open(path, 'wb') as f:
    os.unlink(path)
    for _ in range(150):
        f.write(b'x' * (1 << 20))
reached()
""",
    ),
    attack(
        "hoard in pipes",
        """
import fcntl
for _ in range(10):
    ends = os.pipe()
    fcntl.fcntl(ends[1], 1031, 1 << 20)
    reached()
""",
    ),
    attack(
        "raise the memory limit",
        """
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
reached()
""",
    ),
    attack("lock memory", "sysc((149, 228), mmap.mmap.__sizeof__(mmap.mmap), 4096)\nreached()"),
    attack("deep recursion", "sys.setrecursionlimit(10**9)\ndef f(): f()\nf()", *TOO_BIG, *STOPPED),
    attack(
        "deep deallocation",
        "x = None\nfor _ in range(10**6): x = (x,)\ndel x\nprint('done')",
        OK,
        *TOO_BIG,
        *STOPPED,
    ),
    attack("a number that takes for ever", "x = 9 ** (9 ** 9)\nreached()", *STOPPED, *TOO_BIG),
]

TIME = [
    attack("endless loop", "while True: pass", *STOPPED),
    attack("sleep", "time.sleep(30)", Status.WALL_LIMIT),
    attack(
        "ignore every signal",
        """
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    pass
""",
        *STOPPED,
    ),
    attack("sleep with stdout closed", "os.close(1)\nos.close(2)\ntime.sleep(30)", *STOPPED),
    attack(
        "a thread that never ends",
        "threading.Thread(target=time.sleep, args=(30,)).start()",
        *STOPPED,
    ),
    attack("stop itself", "os.kill(os.getpid(), signal.SIGSTOP)", Status.WALL_LIMIT),
    attack(
        "hold the interpreter's lock in C",
        "import re\nre.match('(a+)+$', 'a' * 40 + 'b')",
        *STOPPED,
    ),
    attack(
        "raise the processor limit",
        """
resource.setrlimit(resource.RLIMIT_CPU, (-1, -1))
reached()
""",
    ),
    attack("outlive the parent", "sysc((157, 167), 1, 0, 0, 0, 0)\nreached()"),
    attack("hang at exit", "import atexit\natexit.register(time.sleep, 30)", *STOPPED),
]

OUTPUT = [
    attack("flood stdout", "for _ in range(3000): os.write(1, b'x' * 65536)", Status.OUTPUT_LIMIT),
    attack("flood stderr", "for _ in range(3000): os.write(2, b'x' * 65536)", Status.OUTPUT_LIMIT),
    attack("one long line", "print('x' * (10 << 20))", Status.OUTPUT_LIMIT),
    attack("bytes that are no text", "os.write(1, bytes(range(256)))", OK),
    attack(
        "write to every descriptor",
        """
for number in range(3, 1024):
    try:
        os.write(number, b'{"ready": true, "value": 1}\\n')
    except OSError:
        continue
    reached(number)
""",
    ),
    attack("read a stdin that is empty", "print(repr(sys.stdin.read()))", OK),
    attack("leave with success", "os._exit(0)", OK),
    attack("leave with an odd code", "os._exit(77)", RAISED),
    attack("crash in C", "ctypes.string_at(0)", KILLED),
    attack("abort", "os.abort()", KILLED),
    attack(
        "an exception that cannot be printed",
        "class E(Exception):\n    def __str__(self): raise SystemExit(0)\nraise E",
        RAISED,
    ),
    attack("text that no encoding takes", "print('\\ud800')", RAISED),
]
