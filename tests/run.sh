#!/usr/bin/env bash
# make test: set-up, format, lints, tests. The last line of the output is "N passed, M failed, K skipped"; the exit
# code is 0 only if nothing failed.
#
# A test that cannot run on this machine prints "skipped: NAME: REASON" and returns. The test harness counts it as
# passed and hides its output, so the harness is told to show the output of passing tests (--show-output), the log is
# kept, and such tests are counted as skipped here. A test that could run only in part counts as skipped too.
set -uo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

tests/setup.sh packages
# What Go builds is needed by the tests and not before: meanwhile our own is built.
tests/setup.sh programs &
programs=$!
trap 'kill "$programs" 2>/dev/null || true' EXIT

target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target"
log=$target/test.log
: >"$log"
passed=0
failed=()
skipped=()

# check NAME COMMAND...: a check that is no Rust test.
check() {
    local name=$1
    shift
    echo "== $*"
    if "$@"; then passed=$((passed + 1)); else failed+=("$name"); fi
}

if cargo fmt --version >/dev/null 2>&1; then
    check "format (run: cargo fmt)" cargo fmt --check
else
    skipped+=("format: rustfmt is not installed")
fi
if cargo clippy --version >/dev/null 2>&1; then
    check "lints" cargo clippy --all-targets --locked -- -D warnings
else
    skipped+=("lints: clippy is not installed")
fi

echo "== cargo test --locked"
# An error counts below, where the tests are run.
cargo test --locked --no-run || true
wait "$programs"
# Most tests wait for other programs most of the time.
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$(($(nproc) + 1))}
cargo test --locked --no-fail-fast -- --show-output 2>&1 | tee "$log" | awk '
    # The output of tests that passed is in the log only.
    /^successes:$/ { quiet = 1 }
    /^failures:$/ || /^test result:/ { quiet = 0 }
    !quiet { print; fflush() }'
tested=${PIPESTATUS[0]}

# One line a fact: "passed N", "failed NAME", "skipped NAME: REASON", and "within N" for skips that the harness
# counted as passed.
facts=$(awk '
    function note(text) {
        if (!(text in seen)) { seen[text] = 1; print "skipped " text }
    }
    function end_block() { if (skip_in_block) within++; skip_in_block = 0 }
    /^test result:/ {
        end_block(); part = ""
        for (i = 2; i <= NF; i++) if ($i ~ /^passed/) total += $(i - 1)
    }
    /^successes:$/ { end_block(); part = "successes"; next }
    /^failures:$/ { end_block(); part = "failures"; next }
    /^---- .* stdout ----$/ { end_block(); next }
    /^test .* \.\.\. FAILED$/ { print "failed " $2 }
    /^test .* \.\.\. ignored/ {
        name = $2; reason = $0
        if (!sub(/^.* \.\.\. ignored, /, "", reason)) reason = "marked as ignored"
        note(name ": " reason)
    }
    /skipped: [^ ]+: / && part != "failures" {
        text = $0; sub(/^.*skipped: /, "", text)
        note(text); skip_in_block = 1
        if (part == "") end_block()
    }
    END { end_block(); print "passed " total + 0; print "within " within + 0 }' "$log")

while read -r kind rest; do
    case $kind in
    passed) passed=$((passed + rest)) ;;
    within) passed=$((passed - rest)) within=$rest ;;
    failed) failed+=("$rest") ;;
    skipped) skipped+=("$rest") ;;
    esac
done <<<"$facts"
if [ "$tested" != 0 ] && ! grep -q '^failed ' <<<"$facts"; then
    failed+=("cargo test (it did not come to its end: see above)")
fi
# Several reasons of one test are one skipped test.
names=$(printf '%s\n' "${skipped[@]+"${skipped[@]}"}" | sed -n 's/^\([^ ]*\): .*/\1/p' | sort -u | wc -l)

echo
echo "== summary (full log: $log)"
for line in "${skipped[@]+"${skipped[@]}"}"; do echo "skipped: $line"; done
for line in "${failed[@]+"${failed[@]}"}"; do echo "failed: $line"; done
echo "$passed passed, ${#failed[@]} failed, $names skipped"
[ ${#failed[@]} = 0 ]
