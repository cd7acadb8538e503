#!/usr/bin/env bash
# Run the tests marked `sanitize` on CPU kernels built with ASan and UBSan.
# Usage: tests/sanitize.sh PYTHON [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
python=$PWD/$1
shift

lib=build/sanitize/lib
mkdir -p "$lib"
# Built into a folder of its own; only what changed is compiled again.
CNNKERN_SANITIZE=1 CNNKERN_CUDA=0 "$python" setup.py --quiet build --build-lib "$lib" \
  > build/sanitize.log 2>&1 || { cat build/sanitize.log; exit 1; }

# Both must be there before Python is: ASan to replace malloc, libstdc++ for it to find __cxa_throw.
export LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so)"
# Python and torch free little at exit, so leaks are not looked for.
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
export PYTHONPATH="$PWD/$lib" PYTHONSAFEPATH=1
# Sanitized code is slow, and so many random cases are for the plain build.
export CNNKERN_FUZZ="${CNNKERN_FUZZ:-0.1}"
# The blocks of the cache have no red zones.
export CNNKERN_CPU_CACHE=0

# First see that mistakes are reported in such a process, and that the kernels are instrumented.
g++ -x c++ -shared -fPIC -fsanitize=address,undefined -fno-sanitize-recover=undefined \
  -o build/sanitize/mistakes.so - << 'EOF'
extern "C" int read_past_end(int n) { int* p = new int[n](); int x = p[n]; delete[] p; return x; }
extern "C" int shift_too_far(int n) { return n << (n + 28); }
EOF
for mistake in read_past_end:heap-buffer-overflow "shift_too_far:shift exponent 32"; do
  call="import ctypes, cnnkern; ctypes.CDLL('build/sanitize/mistakes.so').${mistake%%:*}(4)"
  if "$python" -c "$call" > build/sanitize.log 2>&1 || ! grep -q "${mistake#*:}" build/sanitize.log; then
    cat build/sanitize.log
    echo "sanitize: no report of ${mistake%%:*}" >&2
    exit 1
  fi
done
"$python" - << 'EOF'
from cnnkern import _C
assert "/build/sanitize/" in _C.__file__ and b"__asan_load" in open(_C.__file__, "rb").read()
EOF

# --capture=sys leaves file descriptor 2 alone, which reports are written to before the process ends.
exec "$python" -m pytest -m "sanitize and not gpu" --capture=sys -p no:cacheprovider "$@"
