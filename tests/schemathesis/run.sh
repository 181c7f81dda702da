#!/usr/bin/env bash
# Lets schemathesis ask a running server everything its description allows, and much that it does not: no answer may be an error
# of the server, or other than described. Usage: run.sh BINARY FOLDER, where FOLDER is for what comes and goes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
binary=$(realpath "$1") scratch=$(realpath "$2")
venv=${CARGO_TARGET_DIR:-$root/target}/schemathesis
export API_TOKEN=a-token-for-the-tests

if ! cmp -s "$here/requirements.txt" "$venv/installed"; then
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --no-deps --disable-pip-version-check -r "$here/requirements.txt"
  cp "$here/requirements.txt" "$venv/installed"
fi

cd "$root"
API_PORT=0 WORKSPACE_PORT=0 AGENT_PORT=0 CANVAS_HOST=127.0.0.2 CANVAS_PORT=0 DATABASE_URL="sqlite://$scratch/schemathesis.db" \
  "$binary" --log json 2>"$scratch/server" &
server=$!
trap 'kill "$server" 2>/dev/null; wait "$server" || true' EXIT
for _ in $(seq 100); do
  grep -q '"message":"ready"' "$scratch/server" && break
  kill -0 "$server" || { cat "$scratch/server" && exit 1; }
  sleep 0.1
done
url=$(sed -nE 's/.*"name":"api","url":"([^"]+)".*/\1/p' "$scratch/server")

# It keeps notes where it stands.
cd "$scratch"
"$venv/bin/python" - "$url" "$API_TOKEN" >openapi.json <<'FETCH'
import sys, requests
answer = requests.get(sys.argv[1] + "/openapi.json", headers={"Authorization": "Bearer " + sys.argv[2]}, timeout=10)
answer.raise_for_status()
sys.stdout.write(answer.text)
FETCH
status=0
timeout 60 "$venv/bin/st" --config-file "$here/schemathesis.toml" run openapi.json --url "$url" --checks all || status=$?
[ "$status" != 124 ] || echo 'it took more than a minute'
if grep -q '"message":"panicked"' "$scratch/server"; then grep '"panicked"' "$scratch/server" && status=1; fi
exit "$status"
