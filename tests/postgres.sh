#!/usr/bin/env bash
# Runs a command beside a PostgreSQL server of its own: tests/postgres.sh COMMAND…
# The server lives in a scratch folder, answers on a free port of the loopback only, is named to the command by
# TRAMLINE_TEST_POSTGRES, and is gone when the command ends, however it does. Needs Debian's `postgresql` to be installed.
set -euo pipefail

bin=$(find /usr/lib/postgresql -path '*/bin/initdb' -printf '%h\n' 2>/dev/null | sort -V | tail -n 1)
bin=${bin:-$(dirname "$(command -v initdb)")}
[ -x "$bin/initdb" ] || { echo "missing: initdb (Debian package postgresql)" && exit 69; }

# PostgreSQL refuses to be root's.
as=()
if [ "$(id -u)" = 0 ]; then
  user=postgres
  id -u "$user" >/dev/null 2>&1 || user=nobody
  as=(setpriv "--reuid=$user" "--regid=$(id -g "$user")" --clear-groups)
fi

folder=$(mktemp -d)
server=
cleanup() {
  if [ -n "$server" ]; then
    kill -QUIT "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
  fi
  rm -rf "$folder"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
if [ ${#as[@]} -gt 0 ]; then chown "$user" "$folder"; fi
cd "$folder"
"${as[@]}" "$bin/initdb" -D "$folder/data" -U tramline -A trust -E UTF8 --locale=C -N >"$folder/log" 2>&1 || { cat "$folder/log" && exit 1; }
# A port that is free now may be taken a moment later: then another is tried. What tests show survives a crash of the server
# under test, not of this one, so it need not wait for the disk.
for _ in 1 2 3 4 5; do
  port=$(shuf -i 20000-32000 -n 1)
  "${as[@]}" "$bin/postgres" -D "$folder/data" -p "$port" -c listen_addresses=127.0.0.1 -c unix_socket_directories= \
    -c fsync=off -c max_connections=300 >>"$folder/log" 2>&1 &
  server=$!
  until grep -qs ready "$folder/data/postmaster.pid"; do
    kill -0 "$server" 2>/dev/null || break
    sleep 0.1
  done
  if kill -0 "$server" 2>/dev/null; then break; fi
  server=
done
[ -n "$server" ] || { cat "$folder/log" && exit 1; }
cd "$OLDPWD"
# Not `exec`: what follows is the clean-up.
TRAMLINE_TEST_POSTGRES=postgres://tramline@127.0.0.1:$port/postgres "$@"
