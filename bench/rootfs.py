#!/usr/bin/env python3
"""A container's own root file system beside runc's, on overlayfs and ext4 of the host. Prints Markdown.

Both containers have the same files: ours as an image with a scratch disk in the VM (overlay, ext4,
virtio-blk, a sparse file on the host's disk), runc's as an overlay on the same disk. The same fio
jobs run in each, on a file of the root, container after container; the figure is the best of ROUNDS.
There is no bar for the ratio: without hardware virtualization it is mostly that of the processors.

rootfs.py [-r ROUNDS] [-s SECONDS]; needs a staged build (CAISSON_STAGE); runs as root.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import blk

TOP = blk.TOP
sys.path.insert(0, str(TOP / "tests/images"))
import oci  # noqa: E402  pylint: disable=wrong-import-position

STAGE = pathlib.Path(os.environ.get("CAISSON_STAGE", TOP / "build/release/stage"))
FILE_MIB = 64


def fill_root(root):
    for d in ["bin", "usr/bin", "proc", "sys", "dev", "tmp"]:
        (root / d).mkdir(parents=True)
    for name, where in [("busybox", "bin/busybox"), ("fio", "usr/bin/fio")]:
        program = shutil.which(name)
        if not program:
            sys.exit(f"rootfs.py: {name} is not installed")
        shutil.copy(program, root / where)
        for lib in blk.libraries(program):
            target = root / lib.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                shutil.copy(lib, target)


def script(seconds):
    lines = [f"/bin/busybox dd if=/dev/urandom of=/data bs=1M count={FILE_MIB} conv=fsync 2>/dev/null"]
    for i, (options, _) in enumerate(blk.JOBS.values()):
        lines.append(f"echo \"RESULT {i};$(/usr/bin/fio --name=x --filename=/data --size={FILE_MIB}m --direct=1 "
                     f"--minimal --time_based --runtime={seconds} {options})\"")
    return ["/bin/busybox", "sh", "-c", "\n".join(lines)]


def output(argv, **kw):
    p = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False,
                       stdin=subprocess.DEVNULL, **kw)
    if p.returncode:
        sys.exit(f"rootfs.py: {argv[0]}: {p.stderr[-2000:]}")
    return p.stdout


def run_runc(where, command):
    bundle = where / "bundle"
    for d in ["upper", "work", "rootfs"]:
        (bundle / d).mkdir(parents=True)
    subprocess.run(["runc", "spec"], cwd=bundle, check=True)
    config = json.loads((bundle / "config.json").read_text(encoding="utf-8"))
    config["process"].update(args=command, terminal=False)
    config["root"]["readonly"] = False
    (bundle / "config.json").write_text(json.dumps(config), encoding="utf-8")
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", f"lowerdir={where}/root,upperdir={bundle}/upper,"
                    f"workdir={bundle}/work", bundle / "rootfs"], check=True)
    try:
        return output(["runc", "--root", where / "runc", "run", "caisson-bench"], cwd=bundle)
    finally:
        subprocess.run(["umount", bundle / "rootfs"], check=True)
        shutil.rmtree(bundle)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("-r", type=int, default=2)
    p.add_argument("-s", type=int, default=3)
    a = p.parse_args()
    best = {}
    with tempfile.TemporaryDirectory(prefix="caisson-rootfs-", dir="/var/tmp") as d:
        where = pathlib.Path(d)
        fill_root(where / "root")
        oci.write_layout(where / "image", {"latest": oci.Image([oci.Layer(oci.tar_of_tree(where / "root"))])})
        env = {**os.environ, "CAISSON_ROOT": f"{d}/r", "CAISSON_RUN": f"{d}/s"}
        ours = [STAGE / "bin/caisson", "run", "--rm", "-m", "512m", "--network", "none", f"oci:{d}/image:latest"]
        output([*ours, "/bin/busybox", "true"], env=env)
        for _ in range(a.r):
            for name, text in [("ours", output([*ours, *script(a.s)], env=env)),
                               ("runc", run_runc(where, script(a.s)))]:
                for line in text.splitlines():
                    if line.startswith("RESULT "):
                        head, *fields = line.split(";")
                        job = int(head.split()[1])
                        value = int(fields[list(blk.JOBS.values())[job][1]])
                        best[name, job] = max(best.get((name, job), 0), value)
    print("| operations a second | ours | runc, overlayfs on ext4 | ratio |\n|---|---:|---:|---:|")
    for i, name in enumerate(blk.JOBS):
        mine, other = best.get(("ours", i), 0), best.get(("runc", i), 0)
        print(f"| {name} | {mine} | {other} | {mine / max(other, 1):.2f} |")


if __name__ == "__main__":
    main()
