// Runs the examples of a Markdown file, so that what a reader copies works. The markers are described in readme.test.js.
// Knows no example: what is run, with which server and which answer is read from the file alone.

import { spawn } from 'node:child_process';
import { cpSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { dirname, join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { bare, binary, folder, here, root, start } from './tramline.js';

const RUN_MS = 20_000;
const OUTPUTS = ['text', 'json'];
const HOST_PORT = /(localhost|127\.0\.0\.1|\[::1\]|_HOST:-\w+\}):(\d{2,5})\b/g;
const ENV_PORT = /(PORT:-)(\d{2,5})\b/g;
const packages = join(here, 'node_modules');

/** The fenced blocks of a Markdown text: `{ line, lang, marker, body }`. */
export function blocks(markdown) {
  const found = [];
  let marker;
  let open;
  for (const [i, line] of markdown.split('\n').entries()) {
    const fence = line.match(/^\s*(`{3,}|~{3,})\s*(\S*)/);
    if (open) {
      if (fence && !fence[2] && fence[1].startsWith(open.fence)) {
        found.push({ line: open.line, lang: open.lang, marker: open.marker, body: open.body.join('\n') });
        open = undefined;
      } else open.body.push(line.startsWith(open.indent) ? line.slice(open.indent.length) : line.trimStart());
    } else if (fence) {
      open = { line: i + 1, lang: fence[2], marker, fence: fence[1], indent: line.match(/^\s*/)[0], body: [] };
      marker = undefined;
    } else if (line.trim()) {
      marker = line.match(/^\s*<!--\s*test:\s*(.*?)\s*-->\s*$/)?.[1];
    }
  }
  if (open) throw new Error(`line ${open.line}: the block has no end`);
  return found;
}

/** Whether a text is the wanted one, where `…` stands for anything: within a line, or for lines where it stands alone. */
export function matches(wanted, got, lang) {
  // White space between the parts of JSON means nothing.
  const plain = (text) => (lang === 'json' ? text.replace(/("(?:[^"\\]|\\.)*")|\s+/g, '$1') : text.trim().replace(/[ \t]+$/gm, ''));
  const escaped = plain(wanted).replace(/[\\^$.*+?()[\]{}|]/g, '\\$&');
  const any = lang === 'json' ? escaped.replaceAll('…', '.*?') : escaped.replace(/^…$/gm, '[^]*?').replaceAll('…', '[^\\n]*?');
  return new RegExp(`^${any}$`, lang === 'json' ? 's' : '').test(plain(got));
}

/** Runs every block in its order. Gives for each that was run or is at fault `{ line, what, fault }`; `fault` is nothing where all is well. */
export async function* verify(markdown, t) {
  const all = blocks(markdown);
  let scene = new Scene(t, 'shipped');
  scene.ship();
  try {
    for (const [i, block] of all.entries()) {
      const [verb, ...words] = (block.marker ?? '').split(/\s+/);
      const what = `${block.lang || 'a block'} ${block.marker ?? '(unmarked)'}`;
      let act;
      if (verb === 'routes') {
        act = async () => {
          await scene.end();
          scene = new Scene(t, words[0] ?? 'unnamed');
          scene.write('routes.yaml', block.body);
          scene.invalid = words[1] === 'invalid';
        };
      } else if (verb === 'file') act = () => scene.write(words.join(' '), block.body);
      else if (verb === 'run' || verb === 'node') act = () => scene.run(verb, block, all[i + 1], words[0] === 'fails');
      else if (verb === 'none:' && words.length > 0) continue;
      else if (!block.marker && OUTPUTS.includes(block.lang)) continue;
      else act = () => { throw new Error('it is not tested: mark it with routes, file, run, node, or none: and a reason'); };
      yield { line: block.line, what, fault: await attempt(act) };
      // A scene that no command looks at is started all the same: its file must be valid.
      const next = all.slice(i + 1).find((b) => /^(routes|file|run|node)\b/.test(b.marker ?? ''));
      if (scene.name !== 'shipped' && !next?.marker.match(/^(file|run|node)/)) {
        const fault = await attempt(() => scene.begin());
        if (fault) yield { line: block.line, what: `scene ${scene.name}`, fault };
      }
    }
  } finally {
    await scene.end();
  }
}

async function attempt(act) {
  try {
    await act();
  } catch (error) {
    return error.message;
  }
  return undefined;
}

function freePort() {
  return new Promise((done, fail) => {
    const probe = createServer().on('error', fail);
    probe.listen(0, () => {
      const { port } = probe.address();
      probe.close(() => done(port));
    });
  });
}

/** A folder with a routes file, its plugins, and the server that runs them, started when first needed. */
class Scene {
  #begun;
  #server;
  #files = new Map();
  #ports = new Map();
  invalid = false;

  constructor(t, name) {
    this.t = t;
    this.name = name;
    this.dir = folder(t);
    mkdirSync(join(this.dir, 'bin'));
    symlinkSync(binary, join(this.dir, 'bin/tramline'));
    symlinkSync(packages, join(this.dir, 'node_modules'));
  }

  /** Takes the files that the project ships. */
  ship() {
    this.#files.set('routes.yaml', readFileSync(join(root, 'routes.yaml'), 'utf8'));
    cpSync(join(root, 'plugins'), join(this.dir, 'plugins'), { recursive: true });
  }

  write(path, body) {
    const at = resolve(this.dir, path);
    if (!path || !at.startsWith(this.dir)) throw new Error(`\`${path}\` is not the path of a file`);
    if (this.#begun) throw new Error('a file must stand before the first command of its scene');
    this.#files.set(path, body);
  }

  begin() {
    this.#begun ??= this.#begin();
    return this.#begun;
  }

  async #begin() {
    const routes = this.#files.get('routes.yaml');
    if (!/^api:/m.test(routes)) this.#files.set('routes.yaml', `${routes}\napi: { listen: "localhost:4000" }\n`);
    for (const text of this.#files.values()) {
      for (const [, , port] of [...text.matchAll(HOST_PORT), ...text.matchAll(ENV_PORT)]) {
        if (!this.#ports.has(port)) this.#ports.set(port, String(await freePort()));
      }
    }
    for (const [path, text] of this.#files) {
      mkdirSync(dirname(join(this.dir, path)), { recursive: true });
      writeFileSync(join(this.dir, path), this.#lead(text));
    }
    const { code, out } = await this.#child(['tramline', 'check']);
    if (this.invalid !== (code !== 0)) throw new Error(`routes.yaml is ${this.invalid ? 'valid, and should not be' : 'not valid'}:\n${out}`);
    if (this.invalid) return;
    this.#server = await start(this.t, { args: ['--config', 'routes.yaml'], cwd: this.dir, db: this.dir, ports: {} });
  }

  /** The ports of the file to the ports in use. */
  #lead(text) {
    const to = (whole, before, port) => (this.#ports.has(port) ? whole.slice(0, -port.length) + this.#ports.get(port) : whole);
    return text.replace(HOST_PORT, to).replace(ENV_PORT, to);
  }

  /** The ports in use to the ports of the file. */
  #back(text) {
    const shown = new Map([...this.#ports].map(([of, to]) => [to, of]));
    return text.replace(HOST_PORT, (whole, _, port) => (shown.has(port) ? whole.slice(0, -port.length) + shown.get(port) : whole));
  }

  async run(verb, { body }, next, fails) {
    await this.begin();
    const wanted = next && !next.marker && OUTPUTS.includes(next.lang) ? next : undefined;
    const done = wanted && ((out) => matches(wanted.body, out, wanted.lang));
    const { code, out, err } = await this.#child(this.#command(verb, this.#lead(body)), done);
    if (done) {
      if (!done(out)) throw new Error(`line ${next.line}: it answers\n${out.trim() || '(nothing)'}\n${err}`.trim());
      if (code === undefined) return;
    }
    if (code === undefined) throw new Error(`it did not end within ${RUN_MS} ms`);
    if (fails !== (code !== 0)) throw new Error(`it ended with ${code}:\n${out}${err}`.trim());
  }

  #command(verb, body) {
    if (verb === 'run') return ['bash', '-euo', 'pipefail', '-c', body.replace(/^\$ /gm, '')];
    const file = join(this.dir, /\brequire\(/.test(body) ? 'example.cjs' : 'example.mjs');
    writeFileSync(file, body);
    // As in a browser, and in Node.js from 22 on.
    const prelude = join(this.dir, 'prelude.mjs');
    writeFileSync(prelude, "import WebSocket from 'ws'; globalThis.WebSocket ??= WebSocket;");
    return [process.execPath, '--import', pathToFileURL(prelude).href, file];
  }

  /** Runs a command to its end, or until its output is the wanted one. */
  #child([command, ...args], done) {
    const path = `${join(this.dir, 'bin')}:${process.env.PATH}`;
    const child = spawn(command, args, { cwd: this.dir, env: bare({ PATH: path }), stdio: ['ignore', 'pipe', 'pipe'], detached: true });
    let [out, err] = ['', ''];
    return new Promise((resolve, reject) => {
      const end = (code) => {
        clearTimeout(timer);
        // With all that it started.
        try { process.kill(-child.pid, 'SIGKILL'); } catch { /* It has ended. */ }
        resolve({ code, out: this.#back(out), err: this.#back(err) });
      };
      const timer = setTimeout(end, RUN_MS);
      child.on('error', (error) => { clearTimeout(timer); reject(error); });
      child.on('close', (code) => end(code ?? 1));
      child.stderr.setEncoding('utf8').on('data', (text) => { err += text; });
      child.stdout.setEncoding('utf8').on('data', (text) => {
        out += text;
        if (command === process.execPath && done?.(this.#back(out))) end(undefined);
      });
    });
  }

  async end() {
    await this.#server?.stop();
  }
}
