#!/usr/bin/env bash
# Measures: the path of a message through Tramline alone, then Tramline beside other servers. Arguments go to the second.
# What the others need is installed; what cannot be is left out, and said. UPDATE=1 writes the table into README.md.
set -euo pipefail
cd "$(dirname "$0")/.."
peers=benches/peers

install_peers() {
  if ! command -v npm >/dev/null; then
    echo 'no npm: the servers that need Node.js or its packages are left out'
    return
  fi
  if ! [ "$peers/node_modules/.package-lock.json" -nt "$peers/package-lock.json" ]; then
    npm --prefix "$peers" ci --no-audit --no-fund --loglevel=error || echo 'npm packages cannot be installed'
  fi
  # Where npm runs no scripts of packages, bun's has not fetched its program.
  if [ -e "$peers/node_modules/bun/install.js" ] && ! "$peers/node_modules/.bin/bun" --version >/dev/null 2>&1; then
    node "$peers/node_modules/bun/install.js" || echo 'bun cannot be installed'
  fi
}

if [ -e benches/path.rs ]; then cargo bench --bench path; fi
install_peers
cargo bench --bench load -- "$@"
