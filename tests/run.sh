#!/usr/bin/env bash
# Runs every test there is, stage by stage, and installs what they need. A stage that fails does not keep the later ones from running.
# The last line is the sum: `N passed, N failed, N skipped`. The exit code is 0 only when nothing failed.
set -euo pipefail
cd "$(dirname "$0")/.."

passed=0 failed=0 skipped=0 ran=0
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

title() { printf '\n== %s\n' "$*"; }

# Sums a number over the lines of a file: count FILE PATTERN, where the pattern's first group is the number.
count() { sed -nE "s/$2/\1/p" "$1" | awk '{ sum += $1 } END { print sum + 0 }'; }

# A stage that is one test: stage TITLE COMMAND…
stage() {
  title "$1"
  if "${@:2}"; then passed=$((passed + 1)); else failed=$((failed + 1)) && echo "failed: $1"; fi
}

skip() { # skip COUNT WHY
  skipped=$((skipped + $1))
  echo "left out: $2 ($1 tests)"
}

# Installs a Debian package where that is allowed: install PACKAGE
install() {
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing $1"
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$1"; } >"$scratch/apt" 2>&1 || tail -n 3 "$scratch/apt"
  fi
}

# Whether a command is there, installed where it is not: need COMMAND PACKAGE
need() {
  command -v "$1" >/dev/null && return
  install "$2"
  command -v "$1" >/dev/null || { echo "missing: $1 (Debian package $2)" && false; }
}

rust_tests() {
  title 'cargo test'
  if ! cargo test --no-run; then
    failed=$((failed + 1))
    echo 'failed: the tests do not build'
    return 1
  fi
  tally cargo test --no-fail-fast
  skipped=$((skipped + $(count "$scratch/cargo" '^test result: .* ([0-9]+) ignored;.*')))
}

# Runs a `cargo test` and adds up what it says: tally COMMAND…
tally() {
  local status=0 green red
  "$@" 2>&1 | tee "$scratch/cargo" || status=$?
  green=$(count "$scratch/cargo" '^test result: .* ([0-9]+) passed;.*')
  red=$(count "$scratch/cargo" '^test result: .* ([0-9]+) failed;.*')
  ran=$((green + red))
  # A test program that dies prints no result.
  if [ "$status" != 0 ] && [ "$red" = 0 ]; then red=1; fi
  passed=$((passed + green))
  failed=$((failed + red))
}

# PostgreSQL's programs, which Debian keeps out of PATH. Installing them starts a server of Debian's, unless that is told not to:
# the tests have one of their own.
need_postgres() {
  local settings=/etc/postgresql-common/createcluster.conf
  has_postgres && return
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo 'installing postgresql'
    {
      apt-get update -q
      export DEBIAN_FRONTEND=noninteractive
      apt-get install -qy --no-install-recommends postgresql-common
      cp "$settings" "$scratch/createcluster.conf"
      echo 'create_main_cluster = false' >>"$settings"
      apt-get install -qy --no-install-recommends postgresql
      cp "$scratch/createcluster.conf" "$settings"
    } >"$scratch/apt" 2>&1 || tail -n 3 "$scratch/apt"
  fi
  has_postgres || { echo 'missing: initdb (Debian package postgresql)' && false; }
}

has_postgres() { compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null; }

# The same tests on the other database. cargo has counted them as left out.
postgres_tests() {
  title 'tests on PostgreSQL'
  if [ "$built" = no ]; then echo 'left out, for want of a binary' && return; fi
  if ! need_postgres; then echo 'left out, for want of PostgreSQL' && return; fi
  tally tests/postgres.sh cargo test --no-fail-fast -- --ignored postgres
  skipped=$((skipped - ran))
}

client_packages() {
  local installed=tests/clients/node_modules/.package-lock.json
  [ "$installed" -nt tests/clients/package-lock.json ] || npm --prefix tests/clients ci --no-audit --no-fund --loglevel=error
}

client_tests() {
  title 'client tests'
  local status=0 red all
  all=$(cat tests/clients/*.test.js | grep -c '^ *test(')
  if [ "$built" = no ]; then skip "$all" 'the clients, for want of a binary' && return; fi
  if ! need node nodejs || ! need npm npm; then skip "$all" 'the clients, for want of Node.js' && return; fi
  if ! node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)'; then
    skip "$all" "the clients, which want Node.js 20 or later; this is $(node --version)" && return
  fi
  if ! client_packages; then failed=$((failed + 1)) && echo 'failed: npm packages cannot be installed' && return; fi
  # For the page at /docs; without it those tests say that they are left out.
  need chromium chromium || true
  CHROMIUM_BIN=$(command -v chromium || true) TRAMLINE_BIN=$binary \
    node --test --test-reporter=spec --test-reporter-destination=stdout \
      --test-reporter=tap --test-reporter-destination="$scratch/node" tests/clients/*.test.js || status=$?
  passed=$((passed + $(count "$scratch/node" '^# pass ([0-9]+)$')))
  skipped=$((skipped + $(count "$scratch/node" '^# skipped ([0-9]+)$')))
  red=$(count "$scratch/node" '^# fail ([0-9]+)$')
  red=$((red + $(count "$scratch/node" '^# cancelled ([0-9]+)$')))
  if [ "$status" != 0 ] && [ "$red" = 0 ]; then red=1; fi
  failed=$((failed + red))
}

description_tests() {
  if [ "$built" = no ]; then skip 1 'schemathesis, for want of a binary' && return; fi
  need python3 python3-venv || true
  python3 -c 'import ensurepip' 2>/dev/null || install python3-venv
  if ! python3 -c 'import ensurepip'; then
    skip 1 'schemathesis, for want of Python with venv' && return
  fi
  stage 'schemathesis' tests/schemathesis/run.sh "$binary" "$scratch"
}

# The suite's Python is too old to be installed from anywhere: it is there or not.
autobahn_tests() {
  title 'autobahn'
  local status=0
  if [ "$built" = no ]; then skip 1 'Autobahn, for want of a binary' && return; fi
  tests/autobahn/run.sh || status=$?
  case $status in
    0) passed=$((passed + 1)) ;;
    69) skip 1 'Autobahn, for want of Python 2.7' ;;
    *) failed=$((failed + 1)) && echo 'failed: autobahn' ;;
  esac
}

stage 'cargo fmt' cargo fmt --check
stage 'cargo clippy' cargo clippy --all-targets -- -D warnings
if command -v cargo-deny >/dev/null; then stage 'cargo deny' cargo deny --log-level error check bans licenses sources; fi

if rust_tests; then built=yes; else built=no; fi
# What cargo test has just built.
binary=$(realpath -m "${CARGO_TARGET_DIR:-target}/debug/tramline")
postgres_tests
client_tests
description_tests
autobahn_tests

printf '\n%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
[ "$failed" = 0 ]
