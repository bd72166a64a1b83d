"""Attacks on the machine around: files, network, other processes, the kernel. Each bounded in itself."""

from __future__ import annotations

from tests.attacks.beyond_programs import KERNEL_MEMORY, LATER, LIMITS, LOCKS, PAIRS
from tests.attacks.programs import MEMORY, OUTPUT, PROCESSES, TIME, attack
from tests.attacks.victims import Attack
from workers.sandbox.settings import SandboxStatus as Status

_READS = "if 'the-secret' in {0}: reached()"

FILES = [
    attack("write a file outside", "open(aim['folder'] + '/written', 'w').write('x')\nreached()"),
    attack("write to /var/tmp", "open('/var/tmp/' + aim['stray'], 'w').write('x')"),
    attack("overwrite a file", "open(aim['secret'], 'r+').write('x')\nreached()"),
    attack("truncate a file by its name", "os.truncate(aim['secret'], 0)"),
    attack(
        "truncate a file opened for reading", "os.open(aim['secret'], os.O_RDONLY | os.O_TRUNC)"
    ),
    attack("remove a file", "os.unlink(aim['secret'])"),
    attack("rename a file", "os.rename(aim['secret'], aim['folder'] + '/renamed')"),
    attack("link a file", "os.link(aim['secret'], aim['folder'] + '/linked')"),
    attack("make a symbolic link", "os.symlink(aim['secret'], aim['folder'] + '/symbolic')"),
    attack("make a folder", "os.mkdir(aim['folder'] + '/made')"),
    attack("change a file's mode", "os.chmod(aim['secret'], 0o777)"),
    attack("change a file's times", "os.utime(aim['secret'], (1, 1))"),
    attack(
        "change a file's owner", "os.chown(aim['folder'] + '/secret', -1, os.getgid())\nreached()"
    ),
    attack("set an extended attribute", "os.setxattr(aim['secret'], 'user.x', b'1')\nreached()"),
    attack("read a secret", _READS.format("open(aim['secret']).read()")),
    attack(
        "read a secret through a symbolic link",
        "os.symlink(aim['secret'], '/tmp/l-' + aim['stray'])\n"
        + _READS.format("open('/tmp/l-' + aim['stray']).read()"),
    ),
    attack(
        "read a secret through a hard link",
        "os.link(aim['secret'], '/tmp/h-' + aim['stray'])\n"
        + _READS.format("open('/tmp/h-' + aim['stray']).read()"),
    ),
    attack(
        "read a secret by climbing", _READS.format("open('/usr/lib/../..' + aim['secret']).read()")
    ),
    attack(
        "read a secret through another process's root",
        """
for pid in (1, aim['parent'], aim['victim']):
    try:
        text = open(f"/proc/{pid}/root" + aim['secret']).read()
    except OSError:
        continue
    if 'the-secret' in text: reached()
""",
    ),
    attack(
        "read a secret by its handle",
        """
handle = ctypes.create_string_buffer(struct.pack('II', 128, 0), 136)
mount = ctypes.c_int()
sysc((303, 264), -100, aim['secret'].encode(), handle, ctypes.byref(mount), 0)
fd = sysc((304, 265), -100, handle, 0)
if 'the-secret' in os.read(fd, 100).decode(): reached()
""",
    ),
    attack("read the users of the machine", "open('/etc/passwd').read()\nreached()"),
    attack("read the checkout", "open(aim['root'] + '/pyproject.toml').read()\nreached()"),
    attack("list the checkout", "if os.listdir(aim['root']): reached()"),
    attack("list the root", "if {'boot', 'home', 'root'} & set(os.listdir('/')): reached()"),
    attack(
        "use an inherited descriptor",
        """
for number in range(3, 256):
    try:
        text = os.pread(number, 100, 0)
    except OSError:
        continue
    if b'the-secret' in text: reached()
""",
    ),
    attack("find secrets in the environment", _READS.format("str(os.environ)")),
    attack(
        "fill the scratch folder",
        """
total = 0
try:
    for i in range(30):
        with open(f'/tmp/{aim["stray"]}-{i}', 'wb') as f:
            for _ in range(16):
                f.write(b'x' * (1 << 20))
                total += 1
finally:
    for i in range(30):
        try: os.unlink(f'/tmp/{aim["stray"]}-{i}')
        except OSError: pass
    if total > aim['scratch_mb'] + 1: reached(total)
""",
    ),
    attack(
        "one file over its limit",
        """
path = '/tmp/' + aim['stray']
with open(path, 'wb') as f:
    os.unlink(path)
    f.truncate((aim['scratch_mb'] + 8) << 20)
    reached()
""",
    ),
    attack(
        "fill what else is writable",
        """
for folder in ('/', '/dev', '/run', '/home', '/usr/lib', '/var/tmp'):
    try:
        with open(f'{folder}/{aim["stray"]}', 'wb') as f:
            os.unlink(f.name)
            reached(folder)
    except OSError:
        pass
""",
    ),
    attack(
        "make a device", "os.mknod('/tmp/d-' + aim['stray'], 0o20600, os.makedev(1, 3))\nreached()"
    ),
    attack(
        "write a kernel setting", "open('/proc/sys/kernel/hostname', 'w').write('x')\nreached()"
    ),
    attack("leave by chroot", "os.chroot('/tmp')\nreached()"),
]

NETWORK = [
    attack(
        "connect over TCP",
        "s = socket.socket()\ns.settimeout(0.5)\ns.connect(('127.0.0.1', aim['tcp']))",
    ),
    attack(
        "send over UDP",
        "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', aim['udp']))",
    ),
    attack(
        "connect to an abstract Unix socket",
        "socket.socket(socket.AF_UNIX).connect('\\0' + aim['abstract'])",
    ),
    attack("connect to a Unix socket", "socket.socket(socket.AF_UNIX).connect(aim['socket'])"),
    attack(
        "listen on a port", "s = socket.socket()\ns.bind(('127.0.0.1', 0))\ns.listen()\nreached()"
    ),
    attack("look up a name", "socket.getaddrinfo('localhost', 80)\nsocket.socket()\nreached()"),
    attack("a raw socket", "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\nreached()"),
    attack("a netlink socket", "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)\nreached()"),
    attack("a vsock socket", "socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)\nreached()"),
    attack("a pair of network sockets", "socket.socketpair(socket.AF_TIPC)\nreached()"),
]

OTHERS = [
    attack("signal the parent", "os.kill(aim['parent'], signal.SIGUSR1)\nreached()"),
    attack(
        "signal the keeper",
        """
for pid in {aim['keeper'], os.getppid()} - {1}:  # 1 is bwrap's own, in its namespace
    try:
        os.kill(pid, 0)
    except OSError:
        continue
    reached(pid)
""",
    ),
    attack(
        "take the keeper's channel to its owner",
        "sysc(438, os.pidfd_open(aim['keeper']), 0, 0)\nreached()",
    ),
    attack("kill the victim", "os.kill(aim['victim'], signal.SIGKILL)\nreached()"),
    attack("signal everyone", "os.kill(-1, 0)\nreached()"),
    attack("signal the victim's group", "os.killpg(os.getpgid(aim['victim']), 0)\nreached()"),
    attack(
        "signal by tgkill",
        "sysc((234, 131), aim['victim'], aim['victim'], 0)\nreached()",
    ),
    attack("signal by tkill", "sysc((200, 130), aim['victim'], 0)\nreached()"),
    attack(
        "signal by a queue",
        """
info = ctypes.create_string_buffer(struct.pack('iii', 0, 0, -1), 128)
sysc((129, 138), aim['victim'], 0, info)
reached()
""",
    ),
    attack("signal by pidfd", "sysc((424, 424), os.pidfd_open(aim['victim']), 0, 0, 0)\nreached()"),
    attack(
        "signal by ownership of a socket",
        """
import fcntl
one, two = socket.socketpair()
fcntl.fcntl(one, fcntl.F_SETOWN, aim['victim'])
reached()
""",
    ),
    attack("attach to the victim", "sysc((101, 117), 16, aim['victim'], 0, 0)\nreached()"),
    attack(
        "read the victim's memory by system call",
        """
into = ctypes.create_string_buffer(8)
class Vec(ctypes.Structure):
    _fields_ = [('base', ctypes.c_void_p), ('size', ctypes.c_size_t)]
mine, theirs = Vec(ctypes.addressof(into), 8), Vec(0x400000, 8)
try:
    sysc((310, 270), aim['victim'], ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0)
except OSError as error:
    if error.errno != errno.EFAULT: raise
reached()
""",
    ),
    attack(
        "read the victim's memory by file", "open(f\"/proc/{aim['victim']}/mem\", 'rb')\nreached()"
    ),
    attack(
        "read the victim's environment",
        "if b'the-secret' in open(f\"/proc/{aim['victim']}/environ\", 'rb').read(): reached()",
    ),
    attack(
        "read the parent's command",
        "if open(f\"/proc/{aim['parent']}/cmdline\", 'rb').read(): reached()",
    ),
    attack("list processes", "if str(aim['victim']) in os.listdir('/proc'): reached()"),
    attack("slow the victim down", "os.setpriority(os.PRIO_PROCESS, aim['victim'], 19)\nreached()"),
    attack(
        "limit the victim",
        "resource.prlimit(aim['victim'], resource.RLIMIT_NOFILE, (3, 3))\nreached()",
    ),
    attack("pin the victim", "os.sched_setaffinity(aim['victim'], {0})\nreached()"),
]

KERNEL = [
    attack("a user namespace", "sysc((272, 97), 0x10000000)\nreached()"),
    attack("a mount", "sysc((165, 40), b'x', b'/tmp', b'tmpfs', 0, 0)\nreached()"),
    attack("a mount by the new calls", "sysc(430, b'tmpfs', 0)\nreached()"),
    attack("io_uring", "sysc(425, 1, ctypes.create_string_buffer(128))\nreached()"),
    attack(
        "bpf",
        "sysc((321, 280), 0, ctypes.create_string_buffer(struct.pack('IIII', 2, 4, 4, 1), 128), 128)\nreached()",
    ),
    attack(
        "perf events",
        "sysc((298, 241), ctypes.create_string_buffer(struct.pack('II', 1, 112), 112), 0, -1, -1, 0)\nreached()",
    ),
    attack("userfaultfd", "sysc((323, 282), 1)\nreached()"),
    attack("keys", "sysc((248, 217), b'user', b'x', b'y', 1, -4)\nreached()"),
    attack("personality", "sysc((135, 92), 0x0040000)\nreached()"),
    attack(
        "another filter of system calls",
        "sysc((317, 277), 2, 0, ctypes.create_string_buffer(1))\nreached()",
    ),
    attack(
        "type into the terminal",
        "import fcntl\nfcntl.ioctl(os.open('/dev/tty', os.O_RDWR), 0x5412, b'x')\nreached()",
    ),
    attack(
        "the calls of another architecture",
        "sysc(0x40000000 | 39)\nreached()",
        Status.KILLED,
        Status.RAISED,
    ),
    attack(
        "a message queue",
        "sysc((240, 180), b'pawl', 0o102, 0o600, 0)\nsysc((241, 181), b'pawl')\nreached()",
    ),
    attack("watch files", "sysc((294, 26), 0)\nreached()"),
    attack("the clock", "sysc((227, 112), 99, 0)\nreached()"),
    attack("the host's name", "socket.sethostname(socket.gethostname())\nreached()"),
]

ATTACKS: dict[str, list[Attack]] = {
    "processes": PROCESSES,
    "memory": [*MEMORY, *KERNEL_MEMORY],
    "limits": LIMITS,
    "time": [*TIME, *LATER],
    "output": OUTPUT,
    "files": [*FILES, *LOCKS],
    "network": [*NETWORK, *PAIRS],
    "other processes": OTHERS,
    "kernel": KERNEL,
}
