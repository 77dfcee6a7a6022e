#!/usr/bin/env python3
"""Start to exit of a trivial container, beside bare QEMU booting the same kernel. Prints Markdown.

The bare QEMU has the machine, CPU, memory and kernel command line that caisson-vmm gave its own
(read from /proc while a container runs), but no devices save the console, and an initramfs whose
init ends the machine at once. Runs alternate, so that a busy machine is busy for both; the ratio is
that of the medians, and that of the fastest.

start.py [RUNS]; needs a staged build (CAISSON_STAGE); runs as root.
"""

import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

TOP = pathlib.Path(__file__).resolve().parents[1]
BAR = 1.4


def timed(argv):
    """Seconds of wall time and of processor time, children that were waited for included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True, timeout=120)
    wall = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def qemu_argv(vm_dir):
    needle = f"CAISSON_VM_DIR={vm_dir}".encode()
    for p in pathlib.Path("/proc").iterdir():
        try:
            if p.name.isdigit() and needle in (p / "environ").read_bytes():
                argv = (p / "cmdline").read_bytes().split(b"\0")[:-1]
                if b"qemu" in argv[0]:
                    return [a.decode() for a in argv]
        except OSError:
            continue
    sys.exit("start.py: no QEMU found for the running container")


def bare(argv, kernel, initrd):
    """The same machine with nothing but a console, for an init that ends it."""
    out, i = [argv[0]], 1
    while i < len(argv):
        key = argv[i]
        value = argv[i + 1] if i + 1 < len(argv) and not argv[i + 1].startswith("-") else None
        i += 1 if value is None else 2
        if key in ("-chardev", "-device", "-mon", "-sandbox", "-initrd", "-name", "-incoming", "-netdev"):
            continue
        if key == "-object" and "id=ram" in value:
            size = next(w for w in value.split(",") if w.startswith("size="))
            value = f"memory-backend-memfd,id=ram,{size},share=on"
        if key == "-kernel":
            value = str(kernel)
        if key == "-append":
            words = value.split(" ")
            mmio = [w for w in words if w.startswith("virtio_mmio.device=")]
            value = " ".join(w for w in words if w not in mmio[1:] and not w.startswith("agent."))
        out += [key] if value is None else [key, value]
    suffix = "device" if any("microvm" in a for a in argv) else "pci"
    bus = ",bus=virtio-mmio-bus.0" if suffix == "device" else ""
    return out + ["-initrd", str(initrd), "-chardev", "null,id=con",
                  "-device", f"virtio-serial-{suffix},id=vser,max_ports=1{bus}",
                  "-device", "virtconsole,chardev=con,bus=vser.0"]


def baseline_initrd(where):
    subprocess.run([os.environ.get("CC", "cc"), "-static", "-nostdlib", "-Os", "-o", where / "init",
                    TOP / "tests/e2e/baseline-init.c"], check=True)
    with open(where / "initrd.cpio", "wb") as f:
        subprocess.run(["cpio", "--quiet", "-o", "-H", "newc"], input=b"init\n", stdout=f, cwd=where,
                       check=True)
    return where / "initrd.cpio"


def other_runtimes(layout, scratch):
    """Rows for crun and runc on the same image's files, where they are installed."""
    found = [r for r in ("crun", "runc") if shutil.which(r)]
    if not found:
        return {}
    bundle = scratch / "bundle"
    rootfs = bundle / "rootfs"
    rootfs.mkdir(parents=True)
    subprocess.run(["sh", "-c", 'for b in "$1"/blobs/sha256/*; do tar -xf "$b" -C "$2" 2>/dev/null; done; '
                    'test -e "$2/bin"', "sh", layout, str(rootfs)], check=False)
    if not (rootfs / "bin").exists():
        return {}
    subprocess.run([found[0], "spec"], cwd=bundle, check=True)
    config = bundle / "config.json"
    text = config.read_text(encoding="utf-8").replace('"terminal": true', '"terminal": false')
    config.write_text(text.replace('"sh"', '"true"'), encoding="utf-8")
    commands = {r: [r, "run", "--bundle", str(bundle), "caisson-bench"] for r in found}
    return {r: c for r, c in commands.items()
            if subprocess.run(c, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0}


def with_containerd(layout, scratch):
    """containerd, and rows for `ctr run` with its own runtime and with ours; (None, {}) without it."""
    if not shutil.which("containerd") or not shutil.which("ctr"):
        return None, {}
    sys.path.insert(0, str(TOP / "tests/e2e"))
    import ctrd  # pylint: disable=import-outside-toplevel

    directory = pathlib.Path(tempfile.mkdtemp(prefix="cb-"))
    stage = pathlib.Path(os.environ["CAISSON_STAGE"])
    daemon = ctrd.Containerd(stage, directory).start()
    name = "docker.io/test/busybox"
    daemon.import_layout(layout, name)
    head = daemon.inside("env", *[f"{k}={v}" for k, v in daemon.env.items()],
                         "ctr", "-a", str(daemon.socket), "run", "--rm")
    tail = [f"{name}:latest", "bench", "true"]
    return daemon, {"ctr run, runc": [*head, *tail],
                    "ctr run, caisson": [*head, "--runtime", ctrd.RUNTIME, *tail]}


POOL = "caisson run --rm, from the pool"


def with_pool(caisson, image, scratch):
    """The words before a command that uses a pool of one machine, and the command."""
    config = scratch / "pool.yaml"
    config.write_text("vm:\n  pool: 1\n", encoding="ascii")
    env = ["env", f"CAISSON_RUN={scratch / 'run-pool'}", f"CAISSON_CONFIG={config}"]
    return env, [*env, str(caisson), "run", "--rm", image, "true"]


def wait_for_pool(env, caisson):
    command = [*env, str(caisson), "pool", "ls", "--json"]
    end = time.monotonic() + 60
    while '"ready"' not in subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout:
        if time.monotonic() > end:
            sys.exit("start.py: the pool is not filled")
        time.sleep(0.2)


def main():
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    stage = pathlib.Path(os.environ.get("CAISSON_STAGE", TOP / "build/release/stage"))
    if not (stage / "bin/caisson").exists():
        sys.exit("start.py: no staged build; set CAISSON_STAGE")
    caisson = stage / "bin/caisson"
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="caisson-start-"))
    os.environ.update(CAISSON_ROOT=str(scratch / "root"), CAISSON_RUN=str(scratch / "run"),
                      NETCONFPATH=str(scratch / "net"))
    layout = subprocess.run([TOP / "tests/images/build", "busybox"], stdout=subprocess.PIPE, text=True,
                            check=True).stdout.split()[-1]
    image = f"oci:{layout}:latest"
    daemon = None
    os.environ["CAISSON_STAGE"] = str(stage)
    try:
        name = subprocess.run([caisson, "run", "-d", image, "sleep", "1000"], stdout=subprocess.PIPE,
                              text=True, check=True).stdout.strip()
        dirs = [p.parent for p in (scratch / "run").rglob("vmm.state")]
        argv = qemu_argv(dirs[0])
        subprocess.run([caisson, "rm", "-f", name], stdout=subprocess.DEVNULL, check=True)
        env, from_pool = with_pool(caisson, image, scratch)
        commands = {
            "bare QEMU, kernel to PID 1": bare(argv, stage / "lib/caisson/vmlinux",
                                               baseline_initrd(scratch)),
            "caisson run --rm": [str(caisson), "run", "--rm", image, "true"],
            POOL: from_pool,
            **other_runtimes(layout, scratch),
        }
        daemon, rows = with_containerd(layout, scratch)
        commands.update(rows)
        times = {k: [] for k in commands}
        # The first run of each leaves caches and a template; it is not counted.
        for command in commands.values():
            timed(command)
        for _ in range(runs):
            for k, command in commands.items():
                if k == POOL:
                    wait_for_pool(env, caisson)
                times[k].append(timed(command))
        subprocess.run([*env, caisson, "pool", "rm", "--all"], check=True)
    finally:
        if daemon:
            daemon.close()
            shutil.rmtree(daemon.dir, ignore_errors=True)
        shutil.rmtree(scratch, ignore_errors=True)

    accel = argv[argv.index("-accel") + 1].split(",")[0]
    walls = {k: [w for w, _ in v] for k, v in times.items()}
    base = walls["bare QEMU, kernel to PID 1"]
    print(f"Image busybox, command `true`, {argv[argv.index('-M') + 1].split(',')[0]}, {accel},"
          f" {runs} alternating runs.\n")
    print("| | median, s | fastest, s | ratio to bare QEMU (median / fastest) |\n|---|---|---|---|")
    for k, w in walls.items():
        print(f"| {k} | {statistics.median(w):.3f} | {min(w):.3f} |"
              f" {statistics.median(w) / statistics.median(base):.2f} / {min(w) / min(base):.2f} |")
    ratio = statistics.median(walls["caisson run --rm"]) / statistics.median(base)
    print(f"\nBar: at most {BAR}. Measured: {ratio:.2f}.")


if __name__ == "__main__":
    main()
