#!/usr/bin/env bash
# Lets Autobahn's suite try a server: tests/autobahn/run.sh [CASE…], where CASE may be `9.*`.
# Without cases, all but half of those with compression: a thousand messages of up to 128 KiB each, which take minutes, and are
# the other half with more bytes. `*` is all.
# The suite wants Python 2.7, from $PYTHON2, the PATH or pyenv. Where there is none, this exits with 69.
# Reports go to target/autobahn/reports/, one page for each case.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
folder=$target/autobahn
env=$folder/env

# A Python 2.7 that can install packages.
find_python() {
  local python
  for python in ${PYTHON2:-} python2.7 "$(pyenv root 2>/dev/null || echo "$HOME/.pyenv")"/versions/2.7*/bin/python; do
    if "$python" -c 'import sys, pip; sys.exit(sys.version_info[:2] != (2, 7))' 2>/dev/null; then echo "$python" && return; fi
  done
  return 1
}

if ! cmp -s "$here/requirements.txt" "$folder/installed"; then
  python=$(find_python) || { echo 'missing: Python 2.7 with pip, which the suite is written for (set PYTHON2)' && exit 69; }
  rm -rf "$folder"
  mkdir -p "$folder"
  export PYTHONWARNINGS=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_PYTHON_VERSION_WARNING=1
  "$python" -m pip --quiet install --target "$folder/virtualenv" virtualenv==20.15.1
  PYTHONPATH=$folder/virtualenv "$python" -m virtualenv --quiet "$env"
  "$env/bin/pip" --quiet install --no-deps -r "$here/requirements.txt"
  cp "$here/requirements.txt" "$folder/installed"
fi

cargo build --quiet --manifest-path "$root/Cargo.toml" --example autobahn
# The server ends with its input.
coproc server { "$target/debug/examples/autobahn"; }
read -r url <&"${server[0]}"

rm -rf "$folder/reports"
excluded=()
if [ $# = 0 ]; then
  set -- '*'
  excluded=('1[23].*.'{9,10,12,13,14,15,16,17,18})
fi
cases=$(printf '"%s",' "$@")
excluded=$(printf '"%s",' "${excluded[@]:-}")
cat >"$folder/spec.json" <<SPEC
{"outdir": "$folder/reports", "servers": [{"agent": "tramline", "url": "$url"}],
 "cases": [${cases%,}], "exclude-cases": [${excluded%,}], "exclude-agent-cases": {}}
SPEC
cd "$folder"
timeout --foreground 1800 "$env/bin/wstest" --mode fuzzingclient --spec spec.json >log || { tail -n 20 log && exit 1; }

"$env/bin/python" - reports/index.json <<'COUNT'
import collections, json, sys
cases = json.load(open(sys.argv[1]))["tramline"]
key = lambda case: [int(part) for part in case.split(".")]
counts = collections.Counter()
broken = []
for case in sorted(cases, key=key):
    fine = ["OK", "NON-STRICT", "INFORMATIONAL"]
    # These offer nothing but a window of 512 bytes, which is declined.
    if case.startswith(("13.3.", "13.5.")):
        fine.append("UNIMPLEMENTED")
    for part in ("behavior", "behaviorClose"):
        if cases[case][part] not in fine:
            broken.append("%s: %s is %s" % (case, part, cases[case][part]))
    counts[cases[case]["behavior"]] += 1
print("%d cases: %s" % (len(cases), ", ".join("%d %s" % (count, kind) for kind, count in counts.most_common())))
for line in broken:
    print(line)
sys.exit(1 if broken or not cases else 0)
COUNT
