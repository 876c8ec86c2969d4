# Shared by the scripts in this folder; sourced, not run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
logs=$root/target/ci
mkdir -p "$logs"
# What is built once only need not be ready for a next time.
if [ "${CI:-}" = true ]; then export CARGO_INCREMENTAL=0; fi

# Runs one named step, shows its output, keeps it for the count at the end, and says how long it took.
step() {
  local name=$1 started=$SECONDS
  shift
  printf '\n== %s\n' "$name"
  if ! "$@" 2>&1 | tee "$logs/$name.log"; then
    printf '== %s FAILED after %s s\n' "$name" "$((SECONDS - started))"
    exit 1
  fi
  printf '== %s ok, %s s\n' "$name" "$((SECONDS - started))"
}

# Sums what cargo test, pytest and the fuzz step printed.
count() {
  python3 - "$logs" <<'PY'
import pathlib, re, sys
passed = failed = skipped = 0
for log in pathlib.Path(sys.argv[1]).glob("*.log"):
    text = log.read_text(errors="replace")
    for m in re.finditer(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored", text, re.M):
        passed, failed, skipped = passed + int(m[1]), failed + int(m[2]), skipped + int(m[3])
    # pytest's closing line, with and without its rule of equals signs.
    for line in re.findall(r"^(?:=+ )?(?:\d+ \w+, )*\d+ \w+ in [\d.]+s.*$", text, re.M):
        for n, what in re.findall(r"(\d+) (passed|failed|skipped|error)", line):
            if what == "passed": passed += int(n)
            elif what == "skipped": skipped += int(n)
            else: failed += int(n)
    passed += len(re.findall(r"^fuzz \w+: ok", text, re.M))
print(f"{passed} passed, {failed} failed, {skipped} skipped")
PY
}
