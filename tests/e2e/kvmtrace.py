"""What a machine costs its host, by the kernel's own trace points; for tests within the testbed.

    with Trace("kvm/kvm_exit") as t:
        ...
        t.mark("hello")
        ...
    exits(t.until("hello"))
"""

import collections
import pathlib
import re
import subprocess

TRACING = pathlib.Path("/sys/kernel/tracing")
EXIT = re.compile(r"kvm_exit: .*?reason (\S+)")
ACCESS = re.compile(r"kvm_mmio: mmio (?:read|write) len \d+ gpa (0x[0-9a-f]+)")
PORT = re.compile(r"kvm_pio: pio_\w+ at (0x[0-9a-f]+)")


class Trace:
    """All of a machine's life must fit into the buffer: what is over 20 MB is lost."""

    def __init__(self, *events):
        self.events, self.lines = events, []

    def write(self, name, text):
        (TRACING / name).write_text(text, encoding="ascii")

    def __enter__(self):
        if not (TRACING / "trace").exists():
            subprocess.run(["mount", "-t", "tracefs", "none", TRACING], check=True)
        self.write("buffer_size_kb", "20000")
        self.write("trace", "")
        for e in self.events:
            self.write(f"events/{e}/enable", "1")
        return self

    def __exit__(self, *_):
        for e in self.events:
            self.write(f"events/{e}/enable", "0")
        text = (TRACING / "trace").read_text(encoding="ascii", errors="replace")
        self.lines = text.splitlines()
        self.write("trace", "")

    def mark(self, word):
        self.write("trace_marker", word)

    def until(self, word):
        found = next((i for i, x in enumerate(self.lines) if x.endswith(f"tracing_mark_write: {word}")),
                     None)
        assert found is not None, f"no mark {word} in {len(self.lines)} lines"
        return self.lines[:found]


def exits(lines):
    """By reason, as the processor gives them, but accesses to devices apart from faults: by address
    ("0xfec00000", the page) or port ("port 0x64"). What the host's own interrupts do is left out."""
    found = collections.Counter()
    for line in lines:
        for pattern in (EXIT, ACCESS, PORT):
            m = pattern.search(line)
            if not m:
                continue
            if pattern is EXIT:
                found[m.group(1)] += 1
            elif pattern is ACCESS and "unsatisfied" not in line:
                found[hex(int(m.group(1), 16) & ~0xfff)] += 1
                found["npf"] -= 1
            elif pattern is PORT:
                found[f"port {m.group(1)}"] += 1
    for host in ("interrupt", "vintr", "io"):
        del found[host]
    return found


def calls(lines, command):
    """Number of system calls of a program's first thread, before its guest first ran."""
    n = 0
    own = re.compile(rf"\s*{command}-\d+ .*sys_enter: ")
    for line in lines:
        if line.lstrip().startswith("vcpu0-") and "kvm_exit:" in line:
            break
        n += bool(own.match(line))
    return n
