"""The testbed's kernel: a stock Debian one, from its package, unpacked to a cache outside the tree.

    CACHE/NAME_VERSION/vmlinux          the ELF out of the package's bzImage: booted without firmware
    CACHE/NAME_VERSION/lib/modules/..   all modules, with depmod's tables
    CACHE/init.c-HASH                   init, compiled

apt is asked only if the cache holds no kernel of the wanted flavour.
"""

import fcntl
import hashlib
import os
import pathlib
import shutil
import struct
import subprocess
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
CACHE = pathlib.Path(os.environ.get("CAISSON_TESTBED_CACHE", "/var/cache/caisson/testbed"))
# What mounts the root: everything else is loaded from there.
EARLY = ["virtio_pci", "virtio_console", "virtiofs", "overlay"]

UNPACK = {
    b"\x1f\x8b": ["gzip", "-dc"],
    b"\xfd7zXZ": ["xz", "-dc"],
    b"\x02\x21\x4c\x18": ["lz4", "-dc"],
    b"\x28\xb5\x2f\xfd": ["zstd", "-dc"],
}


class Unavailable(Exception):
    """What the testbed needs is not to be had here; the text says what."""


def elf_of(image):
    """The ELF file within a bzImage: an address and a length in its header, then its own size."""
    data = image.read_bytes()
    if data[0x202:0x206] != b"HdrS":
        raise Unavailable(f"{image} is no bzImage")
    start = ((data[0x1f1] or 4) + 1) * 512
    offset, length = struct.unpack_from("<II", data, 0x248)
    payload = data[start + offset:start + offset + length]
    for magic, command in UNPACK.items():
        if payload.startswith(magic):
            break
    else:
        raise Unavailable(f"{image} is compressed in an unknown way")
    size = struct.unpack("<I", payload[-4:])[0]
    # The size at the end is taken for garbage by some of the programs: what counts is what comes out.
    elf = subprocess.run(command, input=payload, stdout=subprocess.PIPE,
                         stderr=subprocess.DEVNULL, check=False).stdout
    if not elf.startswith(b"\x7fELF") or len(elf) != size:
        raise Unavailable(f"{command[0]} cannot unpack {image}: {len(elf)} of {size} bytes")
    return elf


def run(*command, **kw):
    try:
        p = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                           check=False, **kw)
    except OSError as e:
        raise Unavailable(f"{command[0]}: {e.strerror}") from e
    if p.returncode:
        raise Unavailable(f"{' '.join(map(str, command))}: {p.stderr.strip().splitlines()[-1:]}")
    return p.stdout


def download(flavour, to):
    """The newest kernel package of @flavour, and its name."""
    meta = f"linux-image-{flavour}"
    names = [x.split()[-1] for x in run("apt-cache", "depends", meta).splitlines()
             if x.strip().startswith("Depends: linux-image-")]
    if not names:
        raise Unavailable(f"apt knows no package {meta}")
    run("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", names[0], cwd=to)
    return next(pathlib.Path(to).glob("*.deb"))


def unpack(package, to):
    run("dpkg-deb", "-x", package, to)
    version = next((to / "lib/modules").iterdir()).name
    run("depmod", "-b", to, version)
    (to / "vmlinux").write_bytes(elf_of(to / f"boot/vmlinuz-{version}"))
    for d in ("boot", "usr"):
        shutil.rmtree(to / d, ignore_errors=True)
    package.unlink()


def cached(flavour):
    found = [d for d in CACHE.glob(f"linux-image-*-{flavour}_*") if (d / "vmlinux").exists() and
             (flavour == "cloud-amd64" or "-cloud-" not in d.name)]
    return max(found, key=lambda d: d.stat().st_mtime) if found else None


def kernel(flavour="cloud-amd64"):
    """The directory of a kernel of @flavour, made if there is none."""
    found = cached(flavour)
    if found:
        return found
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / ".lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = cached(flavour)
        if found:
            return found
        work = pathlib.Path(tempfile.mkdtemp(prefix=".new-", dir=CACHE))
        try:
            work.chmod(0o755)
            package = download(flavour, work)
            name = package.stem
            unpack(package, work)
            work.rename(CACHE / name)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return CACHE / name


def with_needed(tree, names):
    """Paths of modules and of what they need, in the order to load them."""
    table, order = {}, []
    for line in (tree / "modules.dep").read_text(encoding="ascii").splitlines():
        path, _, needs = line.partition(":")
        table[pathlib.Path(path).stem.replace("-", "_")] = [path, *needs.split()]
    builtin = (tree / "modules.builtin").read_text(encoding="ascii").replace("-", "_")
    for name in names:
        if name not in table:
            if f"/{name}.ko" in builtin:
                continue
            raise Unavailable(f"this kernel has no module {name}")
        order += [p for p in reversed(table[name]) if p not in order]
    return [tree / p for p in order]


def cpio(files):
    """A newc archive of {path: (mode, bytes)}."""
    out = bytearray()
    for i, (path, (mode, data)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))]):
        name = path.encode() + b"\0"
        fields = (i + 1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
        out += b"070701" + b"".join(b"%08X" % f for f in fields) + name
        out += b"\0" * (-len(out) % 4) + data
        out += b"\0" * (-len(out) % 4)
    return bytes(out)


def built(source):
    """The static program of a C file beside this one, from the cache."""
    text = (HERE / source).read_bytes()
    made = CACHE / f"{source}-{hashlib.sha256(text).hexdigest()[:16]}"
    if not made.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        work = CACHE / f".{source}-{os.getpid()}"
        run("cc", "-static", "-Os", "-o", work, "-x", "c", HERE / source)
        work.rename(made)
    return made.read_bytes()


def initramfs(where, modules, job):
    """An initramfs for the kernel in @where that loads @modules and does @job (see init.c)."""
    tree = next((where / "lib/modules").iterdir())
    files = {d: (0o040755, b"") for d in ("modules", "dev", "lower", "new")}
    files["init"] = (0o100755, built("init.c"))
    files["job"] = (0o100600, job)
    for i, path in enumerate(with_needed(tree, [*EARLY, *modules])):
        files[f"modules/{i:03}-{path.name}"] = (0o100644, path.read_bytes())
    return cpio(files)
