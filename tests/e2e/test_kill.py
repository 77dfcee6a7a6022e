"""Whatever is killed, at whatever moment: nothing is left behind.

Each round starts a container and kills one thing at a random moment: the command, its shim, the VM's
process, QEMU, or the command by Ctrl-C. CAISSON_KILLS sets the number of rounds.
"""

import os
import pathlib
import random
import signal
import subprocess
import threading
import time

import pytest

from conftest import Caisson, vms
from in_testbed import on_kvm

ROUNDS = int(os.environ.get("CAISSON_KILLS", "30"))
AT_A_TIME = 2
VICTIMS = tuple(v for v in ("cli", "shim", "vmm", "qemu", "interrupt") if v != "qemu" or not on_kvm())


def programs(run_dir):
    """pid by kind, of the processes that belong to this CAISSON_RUN."""
    found = {}
    needle = str(run_dir).encode()
    for p in pathlib.Path("/proc").iterdir():
        if not p.name.isdigit() or int(p.name) == os.getpid():
            continue
        try:
            cmdline = (p / "cmdline").read_bytes()
            environ = (p / "environ").read_bytes()
            if needle not in cmdline and needle not in environ:
                if not any(os.fsencode(os.readlink(f)).startswith(needle)
                           for f in [*(p / "fd").iterdir(), p / "cwd"]):
                    continue
        except OSError:
            continue
        if b"containerd-shim-caisson" in cmdline.split(b"\0")[0]:
            found.setdefault("shim", []).append(int(p.name))
        elif cmdline.split(b"\0")[0].endswith(b"caisson-vmm"):
            found.setdefault("vmm", []).append(int(p.name))
    qemu = [pid for pid, vmm in vms().items() if vmm in found.get("vmm", [])]
    return {**found, "qemu": qemu} if qemu else found


def kill(pid, sig=signal.SIGKILL):
    try:
        os.kill(pid, sig)
        return True
    except ProcessLookupError:
        return False


def one_round(caisson, rng, victim, window):
    """Returns what happened, or raises."""
    name = f"k{rng.getrandbits(48):012x}"
    rm = rng.random() < 0.7
    args = ["run", "--name", name, *(["--rm"] if rm else []), caisson.image, "sleep",
            rng.choice(["0", "0.2", "1000"])]
    p = caisson.popen(*args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(rng.random() * window)
    hit = False
    if victim == "cli":
        hit = kill(p.pid)
    elif victim == "interrupt":
        hit = kill(p.pid, signal.SIGINT)
    else:
        for pid in programs(caisson.run_dir).get(victim, []):
            hit = kill(pid) or hit
    if victim == "interrupt":
        # Once the container runs, the third Ctrl-C kills what ignores it.
        for _ in range(30):
            if p.poll() is not None:
                break
            kill(p.pid, signal.SIGINT)
            time.sleep(0.3)
    try:
        p.wait(60 if hit else 0.5)
    except subprocess.TimeoutExpired:
        if hit and victim != "cli":
            raise AssertionError(f"{victim} was killed, and {args} goes on") from None
        kill(p.pid)
        p.wait()
    # What a killed command leaves running on purpose is removed as a user would.
    r = caisson("rm", "-f", name, timeout=60)
    assert r.code == 0, repr(r)
    caisson.assert_clean(20)
    return hit


def worker(stage, root, image, seed, rounds, results, probe, window):
    import shutil
    import tempfile

    rng = random.Random(seed)
    run_dir = pathlib.Path(tempfile.mkdtemp(prefix="caisson-kill-"))
    if probe:
        shutil.copy2(probe, run_dir / "kvm-probe")
    caisson = Caisson(stage, root, run_dir, image)
    try:
        for i in range(rounds):
            victim = VICTIMS[i % len(VICTIMS)]
            try:
                results.append((victim, one_round(caisson, rng, victim, window), None))
                if len(results) % 10 == 0:
                    print(f"{len(results)} rounds", flush=True)
            except Exception as e:
                results.append((victim, True, f"seed {seed} round {i} {victim}: {e}"))
                print(results[-1][2], flush=True)
                return
    finally:
        caisson.remove_all()
        shutil.rmtree(run_dir, ignore_errors=True)


@pytest.mark.slow
def test_killed_at_random_moments(caisson):
    caisson.run(caisson.image, "true", timeout=120).ok()
    # Moments are drawn from the life of a container and a little more.
    window = 1.2 * caisson.run(caisson.image, "true", timeout=120).ok().seconds
    caisson.assert_clean()
    probe = caisson.run_dir / "kvm-probe"
    seed = int(os.environ.get("CAISSON_SEED", time.time_ns() % 1000000))
    results = []
    threads = [threading.Thread(target=worker, args=(
        caisson.stage, caisson.root, caisson.image, seed + i, ROUNDS // AT_A_TIME, results,
        probe if probe.exists() else None, window)) for i in range(AT_A_TIME)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    failures = [e for _, _, e in results if e]
    hits = {v: sum(1 for w, h, _ in results if w == v and h) for v in VICTIMS}
    print(f"seed {seed}: {len(results)} rounds, kills that met their victim: {hits}")
    assert not failures, "\n".join(failures)
    assert sum(hits.values()) > len(results) // 3, hits


@pytest.mark.parametrize("victim", ["shim", "vmm", pytest.param("qemu", marks=pytest.mark.qemu)])
def test_killed_while_running(caisson, victim):
    p = caisson.popen("run", "--rm", caisson.image, "sh", "-c", "echo up; sleep 1000", text=True)
    assert p.stdout.readline() == "up\n"
    pids = programs(caisson.run_dir)[victim]
    for pid in pids:
        kill(pid)
    code = p.wait(60)
    assert code != 0, p.stderr.read()
    assert len(p.stderr.read().splitlines()) <= 1
    caisson.assert_clean()


@pytest.mark.parametrize("victim", ["shim", "vmm", pytest.param("qemu", marks=pytest.mark.qemu)])
def test_killed_behind_a_detached_container(caisson, detached, victim):
    name = detached()
    for pid in programs(caisson.run_dir)[victim]:
        kill(pid)
    end = time.monotonic() + 30
    while caisson.ps()[0]["State"] != "exited":
        assert time.monotonic() < end, f"still running without its {victim}"
        time.sleep(0.2)
    assert caisson.ps()[0]["ExitCode"] != 0
    caisson("rm", name).ok()
    caisson.assert_clean()


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_during_the_boot(caisson, sig):
    p = caisson.popen("run", "--rm", caisson.image, "true")
    end = time.monotonic() + 30
    while not programs(caisson.run_dir).get("vmm" if on_kvm() else "qemu"):
        assert time.monotonic() < end and p.poll() is None
        time.sleep(0.01)
    p.send_signal(sig)
    assert p.wait(30) == 128 + sig
    caisson.assert_clean()


def test_the_whole_group_is_killed(caisson):
    """Ctrl-C at a terminal goes to every process of the foreground group."""
    p = caisson.popen("run", "--rm", caisson.image, "sh", "-c", "echo up; sleep 1000", text=True,
                      start_new_session=True)
    assert p.stdout.readline() == "up\n"
    os.killpg(p.pid, signal.SIGKILL)
    p.wait()
    caisson.remove_all()
    caisson.assert_clean()
