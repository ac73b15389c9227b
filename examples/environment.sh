# shellcheck shell=bash
# Gives the calling script a Python environment with this project installed:
#
#     source examples/environment.sh [test]      (test: also what the test-suite needs)
#
# creates .venv in the repository root on the first call and reuses it afterwards; sets PYTHON
# and puts the environment's commands first in PATH. Environment variables:
#   FAIRSEQ_SYNTH_PYTHON   a Python that has everything already: use it, install nothing
#   FAIRSEQ_SYNTH_VENV     where the environment lives (default: .venv in the repository)
#   FAIRSEQ_SYNTH_BASE     the Python to build it with (default: the first that will do)

SYNTH_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

synth_say() { echo "environment: $*" >&2; }

synth_fail() {
    synth_say "error: $*"
    exit 1
}

# Prints nothing if this Python can carry the environment, else one line that says why not.
synth_objection() {
    "$1" - 2>/dev/null <<'PYTHON' || echo "$1 does not run"
import os, sys, sysconfig
version = sys.version.split()[0]
try:
    import ensurepip, venv
except ImportError:
    print(f"{sys.executable} {version} has no venv module (Debian, Ubuntu: python3-venv)")
else:
    if not (3, 8) <= sys.version_info[:2]:
        print(f"{sys.executable} is Python {version}: 3.8 or later is needed")
    elif not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
        print(f"{sys.executable} {version} has no Python.h (Debian, Ubuntu: python3-dev)")
PYTHON
}

# Sets SYNTH_BASE. 3.11 first: the numbers in the README were measured on it.
synth_find_base() {
    local candidate objection objections=""
    local candidates=(python3.11 python3 python3.12 python3.13 python3.10 python3.9 python3.8)
    [ -z "${FAIRSEQ_SYNTH_BASE:-}" ] || candidates=("$FAIRSEQ_SYNTH_BASE")
    for candidate in "${candidates[@]}"; do
        command -v "$candidate" >/dev/null || continue
        objection="$(synth_objection "$candidate")"
        if [ -z "$objection" ]; then
            SYNTH_BASE="$candidate"
            return
        fi
        objections="$objections; $objection"
    done
    synth_fail "no usable Python among ${candidates[*]}$objections"
}

synth_find_compiler() {
    local candidate
    for candidate in ${CC:-} cc gcc clang; do
        command -v "$candidate" >/dev/null && return
    done
    synth_fail "no C compiler (cc, gcc or clang): fairseq is built from source and needs one"
}

# What is installed, as long as these are the same: nothing is installed twice.
synth_stamp() { cat "$SYNTH_ROOT/setup.py" "$SYNTH_ROOT"/constraints*.txt | cksum; }

# Finished once, never moved (the commands hold the path), and its Python still there.
synth_usable() {
    [ "$(cat "$SYNTH_VENV/.stamp-path" 2>/dev/null)" = "$SYNTH_VENV" ] &&
        "$SYNTH_VENV/bin/python" -c '' 2>/dev/null
}

synth_create() {
    synth_find_base
    synth_find_compiler
    if [ -e "$SYNTH_VENV" ] && [ -n "$(ls -A "$SYNTH_VENV")" ]; then
        [ -e "$SYNTH_VENV/.fairseq_synth" ] ||
            synth_fail "$SYNTH_VENV was not made by this script: move it away, or set FAIRSEQ_SYNTH_PYTHON"
        synth_say "removing an unfinished or moved environment"
        # The mark stays: whenever this is killed, the folder is still known as ours.
        find "$SYNTH_VENV" -mindepth 1 -maxdepth 1 ! -name .fairseq_synth -exec rm -rf {} +
    fi
    mkdir -p "$SYNTH_VENV"
    touch "$SYNTH_VENV/.fairseq_synth"
    synth_say "creating $SYNTH_VENV with $("$SYNTH_BASE" --version)"
    "$SYNTH_BASE" -m venv "$SYNTH_VENV" || synth_fail "$SYNTH_BASE -m venv failed"
}

# The constraints hold for fairseq's build as well: pip reads PIP_CONSTRAINT (before 25.3) or
# PIP_BUILD_CONSTRAINT (since) there, and -c only outside of it.
synth_pip() {
    local seconds=0
    PIP_CONSTRAINT="$SYNTH_CONSTRAINTS" PIP_BUILD_CONSTRAINT="$SYNTH_CONSTRAINTS" \
        PIP_DISABLE_PIP_VERSION_CHECK=1 \
        "$SYNTH_VENV/bin/python" -m pip install --progress-bar off "$@" >>"$SYNTH_LOG" 2>&1 &
    SYNTH_PID=$!
    trap 'kill "$SYNTH_PID" 2>/dev/null || true' EXIT # a process in the background ignores Ctrl-C
    while kill -0 "$SYNTH_PID" 2>/dev/null; do
        sleep 1
        seconds=$((seconds + 1))
        [ $((seconds % 20)) -ne 0 ] || synth_say "$seconds s: $(tail -n 1 "$SYNTH_LOG" | cut -c 1-80)"
    done
    trap - EXIT
    wait "$SYNTH_PID" || { tail -n 15 "$SYNTH_LOG" >&2; synth_fail "pip install $* failed, see $SYNTH_LOG"; }
}

synth_install() {
    local extras="$1" name=constraints.txt
    "$SYNTH_VENV/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        name=constraints-stock.txt
    SYNTH_CONSTRAINTS="$SYNTH_ROOT/$name" SYNTH_LOG="$SYNTH_VENV/install.log"
    synth_say "installing fairseq, torch and fairseq_synth${extras:+ $extras} with $name (minutes; log: $SYNTH_LOG)"
    rm -f "$SYNTH_VENV"/.stamp*
    synth_pip pip setuptools wheel
    # Editable: `--user-dir fairseq_synth`, the command and the tests all see this checkout.
    synth_pip --editable "$SYNTH_ROOT$extras"
    synth_stamp >"$SYNTH_VENV/.stamp"
    [ -z "$extras" ] || synth_stamp >"$SYNTH_VENV/.stamp-test"
    echo "$SYNTH_VENV" >"$SYNTH_VENV/.stamp-path"
    synth_say "done"
}

synth_environment() {
    local stamp=.stamp extras=""
    if [ -n "${FAIRSEQ_SYNTH_PYTHON:-}" ]; then
        PYTHON="$(command -v "$FAIRSEQ_SYNTH_PYTHON")" ||
            synth_fail "FAIRSEQ_SYNTH_PYTHON=$FAIRSEQ_SYNTH_PYTHON: no such command"
    else
        [ "${1:-}" != test ] || { stamp=.stamp-test extras="[test]"; }
        SYNTH_VENV="${FAIRSEQ_SYNTH_VENV:-$SYNTH_ROOT/.venv}"
        synth_usable || synth_create
        [ "$(cat "$SYNTH_VENV/$stamp" 2>/dev/null)" = "$(synth_stamp)" ] || synth_install "$extras"
        PYTHON="$SYNTH_VENV/bin/python"
        synth_say "using $SYNTH_VENV ($("$PYTHON" --version))"
    fi
    PATH="$(dirname "$PYTHON"):$PATH"
    export PYTHON PATH
    command -v fairseq-train >/dev/null || synth_fail "no fairseq-train beside $PYTHON"
    # glibc hands every large buffer back to the system, which has to clear the next one: up to half
    # of the time of a training on a CPU
    export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-4000000000}"
    export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-4000000000}"
}

# synth_precision: sets PRECISION to bf16 or fp32 and the array HALF to the option of fairseq-train. PRECISION chosen
# by the user holds; else bfloat16 where the processor (or with GPU=1 the GPU) multiplies in it: about twice as fast.
synth_precision() {
    if [ -z "${PRECISION:-}" ]; then
        PRECISION=fp32
        if [ -n "${GPU:-}" ]; then
            "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_bf16_supported())' && PRECISION=bf16
        elif grep -qEs ' (avx512_bf16|amx_bf16)( |$)' /proc/cpuinfo; then
            PRECISION=bf16
        fi
    fi
    case "$PRECISION" in
    bf16) HALF=(--bf16) ;;
    fp32) HALF=() ;;
    *) synth_fail "PRECISION=$PRECISION: must be bf16 or fp32" ;;
    esac
    export PRECISION
}

synth_environment "$@"
