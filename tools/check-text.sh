#!/bin/sh
# Small things that a reader trips over: trailing spaces, unfinished marks, over-long files.
set -eu
cd "$(dirname "$0")/.."
bad=0
complain() { [ -z "$1" ] || { printf '%s\n' "$1"; bad=1; }; }

complain "$(git grep -nE '[[:space:]]+$' -- '*.c' '*.h' '*.py' '*.sh' '*.build' '*.proto' |
    sed 's/$/  <- trailing space/' | head -n 20 || true)"
complain "$(git grep -nwE 'TODO|FIXME|XXX|HACK' -- '*.c' '*.h' '*.py' '*.sh' ':!tools/check-text.sh' |
    sed 's/$/  <- unfinished/' | head -n 20 || true)"
complain "$(git ls-files '*.c' '*.h' | xargs wc -l | awk '$2 != "total" && $1 > 1500 {
    print $2 ": " $1 " lines; split it" }')"
[ "$bad" = 0 ] && echo "text: nothing to complain about"
exit "$bad"
