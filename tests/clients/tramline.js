// Starts the real binary for a test and gives it what a client's program has: `WebSocket` (npm `ws`, as it is) and `fetch`.
//
// Both lead the addresses that users know (localhost:3000, :3001, :4000) to the ports this server got, so that a snippet stands in
// a test as it stands in the application. Everything a test opens is closed after it. Nothing here sleeps: what is awaited arrives,
// or the test fails at a deadline. Knows no protocol.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import nodeTest from 'node:test';
import { fileURLToPath } from 'node:url';
import NodeWebSocket from 'ws';

export const here = dirname(fileURLToPath(import.meta.url));
export const root = resolve(here, '../..');
export const binary = resolve(here, process.env.TRAMLINE_BIN ?? '../../target/debug/tramline');

const WAIT_MS = 15_000;

// Addresses on which several parts may ask for port 0 without meaning the same listener.
const OTHER = process.platform === 'linux' ? ['127.0.0.2', '127.0.0.3'] : ['127.0.0.1', '[::1]'];

const ANY_PORT = {
  WORKSPACE_PORT: '0',
  AGENT_PORT: '0',
  CANVAS_HOST: OTHER[0],
  CANVAS_PORT: '0',
  API_HOST: OTHER[1],
  API_PORT: '0',
};

/** A test with a deadline. */
export const test = (name, run) => nodeTest(name, { timeout: 60_000 }, run);

/** A promise that fails when it takes too long. */
export function soon(promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited ${WAIT_MS} ms for ${what}`)), WAIT_MS);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** A new folder that goes with the test. */
export function folder(t) {
  const path = mkdtempSync(join(tmpdir(), 'tramline-'));
  t.after(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

/** The environment of a child: nothing of the caller's but the path. */
export const bare = (more) => ({ PATH: process.env.PATH, HOME: process.env.HOME, ...more });

/** Starts a server. `env` overrides settings, `args` come before `--log json`, `db` is a folder that outlives the server. */
export async function start(t, { env = {}, args = [], db = folder(t), cwd = root, ports = ANY_PORT } = {}) {
  const child = spawn(binary, [...args, '--log', 'json'], {
    cwd,
    env: bare({ DATABASE_URL: `sqlite://${db}/tramline.db`, ...ports, ...env }),
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  const server = new Server(child);
  t.after(() => server.stop());
  await soon(server.ready, 'the server to be ready');
  return server;
}

class Server {
  #child;
  #exited;
  #clients = new Set();
  log = [];
  /** Of the log: name to URL, the first of each name. */
  served = {};

  constructor(child) {
    this.#child = child;
    this.#exited = once(child, 'exit');
    this.ready = new Promise((resolve, reject) => {
      createInterface({ input: child.stderr }).on('line', (line) => {
        this.log.push(line);
        const { message, name, url } = line.startsWith('{') ? JSON.parse(line) : {};
        if (message === 'serving') this.served[name] ??= url;
        if (message === 'ready') resolve();
      });
      child.on('error', reject);
      child.on('close', (code) => reject(new Error(`the server ended with ${code}:\n${this.log.join('\n')}`)));
    });
    const server = this;
    /** npm `ws`, led to this server. */
    this.WebSocket = class WebSocket extends NodeWebSocket {
      constructor(url, ...rest) {
        super(server.lead(url), ...rest);
        server.#clients.add(this);
        this.on('close', () => server.#clients.delete(this));
      }
    };
    this.fetch = (url, options) => fetch(server.lead(url), { signal: AbortSignal.timeout(WAIT_MS), ...options });
  }

  /** Replaces the well-known addresses in a text by this server's. */
  lead(text) {
    const at = (name) => this.served[name]?.match(/\/\/([^/]+)/)[1];
    const known = { 3000: at('workspace'), 3001: at('canvas'), 4000: at('api') };
    return String(text).replace(/(localhost|127\.0\.0\.1|\[::1\]):(3000|3001|4000)\b/g, (whole, host, port) => {
      if (!known[port]) return whole;
      return host === 'localhost' ? known[port] : `${host}:${known[port].split(':').at(-1)}`;
    });
  }

  /** Opens a WebSocket and records what arrives. */
  open(url, options) {
    return new Client(new this.WebSocket(url, options));
  }

  /** Calls the REST interface and gives status and body. */
  async call(path, body, headers = {}) {
    const url = path.startsWith('http') ? path : `http://localhost:4000${path}`;
    const post = body && { method: 'POST', body: JSON.stringify(body), headers: { 'content-type': 'application/json', ...headers } };
    const response = await this.fetch(url, post ?? { headers });
    const text = await response.text();
    return { status: response.status, body: text ? JSON.parse(text) : undefined, headers: response.headers };
  }

  /** Publishes and wants that to be accepted. */
  async publish(target, type, data, more = {}) {
    const { status, body } = await this.call('/api/publish', { ...target, type, data, ...more });
    assert.equal(status, 202, JSON.stringify(body));
    return body;
  }

  /** Asks until the answer is the wanted one. Each question is a round trip, so this is not a busy loop. */
  until(ask, what) {
    const end = Date.now() + WAIT_MS;
    const again = async () => {
      const answer = await ask();
      if (answer) return answer;
      if (Date.now() > end) throw new Error(`waited ${WAIT_MS} ms for ${what}`);
      return again();
    };
    return again();
  }

  /** Stops in order, and wants that to work. */
  async stop() {
    if (this.#child.exitCode === null && this.#child.signalCode === null) this.#child.kill('SIGTERM');
    try {
      const [code, signal] = await soon(this.#exited, 'the server to stop');
      assert.equal(code, 0, `the server ended with ${code ?? signal}:\n${this.log.slice(-20).join('\n')}`);
    } finally {
      this.#child.kill('SIGKILL');
      for (const client of this.#clients) client.terminate();
    }
  }
}

/** A `ws` client and everything that came to it. */
export class Client {
  #queue = [];
  #waiting = [];

  constructor(ws) {
    this.ws = ws;
    this.opened = once(ws, 'open');
    this.opened.catch(() => {});
    this.closed = new Promise((resolve) => ws.on('close', (code, reason) => resolve({ code, reason: reason.toString() })));
    ws.on('error', () => {});
    ws.on('message', (data) => this.#take(JSON.parse(data)));
    this.closed.then(() => this.#waiting.splice(0).forEach(({ reject }) => reject(new Error('the connection was closed'))));
  }

  #take(message) {
    const waiting = this.#waiting.shift();
    if (waiting) waiting.resolve(message);
    else this.#queue.push(message);
  }

  /** The next message. */
  next() {
    if (this.#queue.length > 0) return Promise.resolve(this.#queue.shift());
    if (this.ws.readyState === NodeWebSocket.CLOSED) return Promise.reject(new Error('the connection is closed'));
    return soon(new Promise((resolve, reject) => this.#waiting.push({ resolve, reject })), 'a message');
  }

  /** The next messages. */
  async some(count) {
    const messages = [];
    while (messages.length < count) messages.push(await this.next());
    return messages;
  }

  async send(message) {
    await soon(this.opened, 'the connection to open');
    this.ws.send(Buffer.isBuffer(message) || typeof message === 'string' ? message : JSON.stringify(message));
  }

  /** Sends and gives the next message, with times as `<iso>`. */
  async ask(message) {
    await this.send(message);
    return timeless(await this.next());
  }

  /** Why it ended. */
  end() {
    return soon(this.closed, 'the connection to close');
  }
}

const ISO = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/;

/** A value with every time of the exact form as `<iso>`, so that shapes can be compared whole. */
export function timeless(value) {
  return JSON.parse(JSON.stringify(value), (_, v) => (typeof v === 'string' && ISO.test(v) ? '<iso>' : v));
}

/** Numbers from 0. */
export const range = (count) => Array.from({ length: count }, (_, i) => i);
