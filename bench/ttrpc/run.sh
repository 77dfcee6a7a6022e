#!/bin/sh
# bench/ttrpc/run.sh BUILDDIR
exec python3 "$(dirname "$0")/run.py" "$1"
