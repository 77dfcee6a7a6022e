#!/usr/bin/env python3
"""Build real container images from Debian packages as OCI layouts.

    mkimage.py NAME...          build if not cached, print the layout's path
    mkimage.py --list

Layouts are kept in $CAISSON_IMAGE_CACHE (default /var/cache/caisson/images), in a directory
named by the recipe's hash, with a symlink NAME -> that directory. Each is tagged `latest`.
Needs root, and for everything but busybox and pause also mmdebstrap and a Debian mirror.
"""

import argparse
import fcntl
import glob
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile

import oci

CACHE = os.environ.get("CAISSON_IMAGE_CACHE", "/var/cache/caisson/images")
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SUITE = "bookworm"
FORMAT = 1

PASSWD = """root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
app:x:1000:1000:app:/home/app:/bin/sh
"""
GROUP = """root:x:0:
daemon:x:1:
tty:x:5:
users:x:100:app
app:x:1000:
extra:x:2000:app
nogroup:x:65534:
"""

NGINX_CONF = """
user www-data;
worker_processes 1;
pid /run/nginx.pid;
error_log stderr notice;
events { worker_connections 64; }
http {
    access_log /dev/stdout;
    include /etc/nginx/mime.types;
    server {
        listen 80 default_server;
        root /usr/share/nginx/html;
        location = /healthz { return 200 "ok\\n"; }
    }
}
"""

PG_ENTRYPOINT = """#!/bin/sh
set -e
bin=$(ls -d /usr/lib/postgresql/*/bin | tail -n 1)
if [ "$(id -u)" = 0 ]; then
    mkdir -p "$PGDATA" /run/postgresql
    chown postgres:postgres "$PGDATA" /run/postgresql
    chmod 700 "$PGDATA"
    exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi
if [ "$1" = postgres ]; then
    [ -s "$PGDATA/PG_VERSION" ] || "$bin/initdb" -D "$PGDATA" -A trust --no-sync >/dev/null
    shift
    exec "$bin/postgres" -D "$PGDATA" "$@"
fi
exec "$@"
"""

# Packages, what of them is left out, image configuration, and files added as a second layer:
# {path: (mode, text)}.
RECIPES = {
    "debian": {
        "packages": ["procps", "iproute2"],
        "config": {"Cmd": ["bash"], "Env": [PATH]},
    },
    "nginx": {
        "packages": ["nginx-light", "curl"],
        "config": {
            "Cmd": ["nginx", "-g", "daemon off;"], "Env": [PATH],
            "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGQUIT",
            "Labels": {"io.caisson.test": "nginx"},
        },
        "files": {
            "etc/nginx/nginx.conf": (0o644, NGINX_CONF),
            "usr/share/nginx/html/index.html": (0o644, "<h1>hello from nginx</h1>\n"),
        },
    },
    "tools": {
        "packages": ["iptables", "openvpn", "iproute2", "iputils-ping", "systemd", "systemd-sysv"],
        "config": {"Cmd": ["bash"], "Env": [PATH]},
    },
    "python3": {
        "packages": ["python3"],
        "config": {"Cmd": ["python3"], "Env": [PATH, "LANG=C.UTF-8"]},
    },
    "postgresql": {
        "packages": ["postgresql"],
        # The compiler of queries; the server does without when it is missing.
        "without": ["usr/lib/*/libLLVM*", "usr/lib/*/libz3*", "usr/lib/postgresql/*/lib/bitcode",
                    "usr/lib/postgresql/*/lib/llvmjit*"],
        "config": {
            "Entrypoint": ["/usr/local/bin/entrypoint"], "Cmd": ["postgres"],
            "Env": [PATH, "LANG=C.UTF-8", "PGDATA=/var/lib/postgresql/data"],
            "ExposedPorts": {"5432/tcp": {}}, "Volumes": {"/var/lib/postgresql/data": {}},
            "StopSignal": "SIGINT",
        },
        "files": {"usr/local/bin/entrypoint": (0o755, PG_ENTRYPOINT)},
    },
}


def add_dir(members, name, mode=0o755, uid=0, gid=0):
    info = tarfile.TarInfo(name + "/")
    info.type, info.mode, info.uid, info.gid = tarfile.DIRTYPE, mode, uid, gid
    info.mtime = oci.EPOCH_SECONDS
    members.append((info, None))


def add_file(members, name, data, mode=0o644):
    info = tarfile.TarInfo(name)
    info.mode, info.mtime = mode, oci.EPOCH_SECONDS
    members.append((info, data if isinstance(data, bytes) else data.encode()))


def add_link(members, name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, 0o777
    info.mtime = oci.EPOCH_SECONDS
    members.append((info, None))


def busybox_binary():
    """The static busybox: this machine's, or unpacked from the package."""
    found = "/bin/busybox"
    if os.path.exists(found) and b"statically linked" in subprocess.run(
            ["file", "-L", found], stdout=subprocess.PIPE, check=False).stdout:
        with open(found, "rb") as src:
            return src.read()
    with tempfile.TemporaryDirectory() as tmp:
        subprocess.run(["apt-get", "download", "-q", "busybox-static"], cwd=tmp, check=True,
                       stdout=sys.stderr)
        deb = next(name for name in os.listdir(tmp) if name.endswith(".deb"))
        subprocess.run(["dpkg-deb", "-x", deb, "root"], cwd=tmp, check=True)
        for path in ("bin/busybox", "usr/bin/busybox"):
            if os.path.exists(os.path.join(tmp, "root", path)):
                with open(os.path.join(tmp, "root", path), "rb") as src:
                    return src.read()
    raise SystemExit("mkimage: no busybox in package busybox-static")


def build_busybox(path):
    binary = busybox_binary()
    with tempfile.NamedTemporaryFile(delete=False) as out:
        out.write(binary)
    os.chmod(out.name, 0o755)
    applets = subprocess.run(["busybox", "--list"], executable=out.name, check=True,
                             stdout=subprocess.PIPE, text=True).stdout.split()
    os.unlink(out.name)
    members = []
    for name in ("bin", "dev", "etc", "home", "proc", "root", "run", "sbin", "sys", "usr",
                 "usr/bin", "usr/sbin", "var", "var/log"):
        add_dir(members, name, 0o700 if name == "root" else 0o755)
    add_dir(members, "home/app", 0o755, 1000, 1000)
    add_dir(members, "tmp", 0o1777)
    add_file(members, "bin/busybox", binary, 0o755)
    for applet in applets:
        if applet != "busybox":
            add_link(members, "bin/" + applet, "bin/busybox", tarfile.LNKTYPE)
    add_link(members, "usr/bin/env", "/bin/busybox")
    add_file(members, "etc/passwd", PASSWD)
    add_file(members, "etc/group", GROUP)
    add_file(members, "etc/shells", "/bin/sh\n")
    layer = oci.Layer(oci.tar_of_members(members))
    oci.write_layout(path, {"latest": oci.Image([layer], {"Cmd": ["sh"], "Env": [PATH]})})


def pause_source():
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "pause.c"),
              encoding="ascii") as f:
        return f.read()


def build_pause(path):
    with tempfile.TemporaryDirectory() as tmp:
        program = os.path.join(tmp, "pause")
        subprocess.run(["gcc", "-static", "-Os", "-s", "-x", "c", "-o", program, "-"],
                       input=pause_source(), text=True, check=True)
        with open(program, "rb") as f:
            members = []
            add_file(members, "pause", f.read(), 0o755)
    layer = oci.Layer(oci.tar_of_members(members))
    oci.write_layout(path, {"latest": oci.Image([layer], {"Entrypoint": ["/pause"]})})


def bootstrap(root, packages):
    """A minimal Debian with @packages in @root; hooks and services of the host stay untouched."""
    command = ["unshare", "-m", "-p", "-i", "-u", "-f", "--mount-proc", "mmdebstrap",
               "--mode=root", "--variant=minbase", "--quiet", "--format=directory",
               "--aptopt=Apt::Install-Recommends false",
               "--dpkgopt=path-exclude=/usr/share/doc/*",
               "--dpkgopt=path-exclude=/usr/share/man/*",
               "--dpkgopt=path-exclude=/usr/share/locale/*",
               "--dpkgopt=path-exclude=/usr/share/info/*"]
    if packages:
        command.append("--include=" + ",".join(packages))
    config = "/etc/apt/apt.conf.d"
    for name in sorted(os.listdir(config)) if os.path.isdir(config) else []:
        if subprocess.run(["grep", "-qiE", "^ *Acquire", os.path.join(config, name)],
                          check=False).returncode == 0:
            command.append("--aptopt=" + os.path.join(config, name))
    subprocess.run([*command, SUITE, root], check=True, stdout=sys.stderr)
    for path in ("etc/apt/apt.conf.d/99mmdebstrap", "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
                 "etc/hostname", "etc/resolv.conf"):
        if os.path.lexists(os.path.join(root, path)):
            os.unlink(os.path.join(root, path))
    for path in ("var/lib/apt/lists", "var/cache/apt", "var/log", "dev"):
        shutil.rmtree(os.path.join(root, path), ignore_errors=True)
        os.makedirs(os.path.join(root, path), exist_ok=True)


def build_debian(path, recipe):
    with tempfile.TemporaryDirectory(prefix="mkimage-", dir=CACHE) as tmp:
        root = os.path.join(tmp, "root")
        os.mkdir(root)
        os.chmod(root, 0o755)
        bootstrap(root, recipe["packages"])
        for pattern in recipe.get("without", []):
            for victim in glob.glob(os.path.join(root, pattern)):
                subprocess.run(["rm", "-rf", victim], check=True)
        layers = [oci.Layer(oci.tar_of_tree(root), "zstd")]
    members, dirs = [], set()
    for name, (mode, text) in sorted(recipe.get("files", {}).items()):
        parts = name.split("/")
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            if parent not in dirs:
                dirs.add(parent)
                add_dir(members, parent)
        add_file(members, name, text, mode)
    if members:
        layers.append(oci.Layer(oci.tar_of_members(members), "gzip"))
    oci.write_layout(path, {"latest": oci.Image(layers, recipe["config"])})


def recipe_hash(name):
    """Changes when the recipe does; FORMAT is raised by hand when the way of building does."""
    recipe = pause_source() if name == "pause" else RECIPES.get(name)
    text = json.dumps([FORMAT, name, recipe, PASSWD, GROUP])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def build(name):
    os.makedirs(CACHE, exist_ok=True)
    final = os.path.join(CACHE, f"{name}-{recipe_hash(name)}")
    with open(os.path.join(CACHE, f".{name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(os.path.join(final, "index.json")):
            print(f"mkimage: building {name}", file=sys.stderr)
            if name == "busybox":
                build_busybox(final)
            elif name == "pause":
                build_pause(final)
            else:
                build_debian(final, RECIPES[name])
        link = os.path.join(CACHE, name)
        if not os.path.islink(link) or os.readlink(link) != os.path.basename(final):
            tmp = link + ".tmp"
            if os.path.lexists(tmp):
                os.unlink(tmp)
            os.symlink(os.path.basename(final), tmp)
            os.rename(tmp, link)
    return link


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--list", action="store_true", help="print the names that can be built")
    parser.add_argument("names", nargs="*", metavar="NAME")
    args = parser.parse_args()
    known = ["busybox", "pause", *RECIPES]
    if args.list:
        print("\n".join(known))
    for name in args.names:
        if name not in known:
            raise SystemExit(f"mkimage: no recipe '{name}' (there are: {', '.join(known)})")
        print(build(name))


if __name__ == "__main__":
    main()
