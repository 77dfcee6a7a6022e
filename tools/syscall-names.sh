#!/bin/sh
# Initializers of an array of system calls' names by number: tools/syscall-names.sh CC...
set -eu
echo '#include <asm/unistd.h>' | "$@" -E -dM - |
    sed -n 's/^#define __NR_\([a-z0-9_]*\) \([0-9]*\)$/[\2] = "\1",/p'
