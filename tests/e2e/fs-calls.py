"""Run in a guest, in a shared directory: each request that a file server answers, at least once."""

import ctypes
import fcntl
import mmap
import os
import sys

os.chdir(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, RENAME_EXCHANGE = -100, 2

os.mkdir("d", 0o750)
fd = os.open("a", os.O_RDWR | os.O_CREAT, 0o640)
os.write(fd, b"x" * 100000)
os.fsync(fd)
os.fdatasync(fd)
os.posix_fallocate(fd, 0, 200000)
libc.fallocate(fd, 3, ctypes.c_long(4096), ctypes.c_long(4096))
os.lseek(fd, 0, os.SEEK_HOLE)
os.ftruncate(fd, 50000)
to = os.open("b", os.O_RDWR | os.O_CREAT)
os.copy_file_range(fd, to, 30000)
fcntl.flock(fd, fcntl.LOCK_EX)
fcntl.flock(fd, fcntl.LOCK_UN)
fcntl.lockf(to, fcntl.LOCK_EX, 10)
fcntl.lockf(to, fcntl.LOCK_UN, 10)
with mmap.mmap(fd, 4096) as m:
    m[0] = 1
    m.flush()
os.setxattr("a", "user.x", b"1")
os.getxattr("a", "user.x")
os.listxattr("a")
os.removexattr("a", "user.x")
os.close(to)
os.close(fd)
with open("a", "rb") as f:
    f.read()
os.link("a", "d/l")
os.symlink("a", "s")
os.readlink("s")
os.rename("b", "d/b")
libc.renameat2(AT_FDCWD, b"a", AT_FDCWD, b"d/b", RENAME_EXCHANGE)
os.mkfifo("p")
os.chmod("a", 0o600)
os.chown("a", 5, 5)
os.utime("a", (1, 2))
os.truncate("a", 10)
os.statvfs(".")
os.listdir(".")
os.sync()
os.setegid(7)
os.seteuid(0)
os.chmod(".", 0o777)
os.seteuid(7)
with open("seven", "w", encoding="ascii") as f:
    f.write("7")
os.seteuid(0)
assert os.stat("seven").st_uid == 7
os.unlink("d/l")
os.unlink("d/b")
os.rmdir("d")
print("done")
