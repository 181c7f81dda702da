// The workspace protocol, as the windows of the editor speak it.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { folder, range, soon, start, test, timeless } from './tramline.js';

const URL = 'ws://localhost:3000/ws';

const subscribed = (channel) => ({ type: 'subscribed', channel, timestamp: '<iso>' });

async function subscribe(server, channel) {
  const client = server.open(URL);
  assert.deepEqual(await client.ask({ type: 'subscribe', channel }), subscribed(channel));
  return client;
}

/** Wants that nothing is on its way to a client: the next thing that comes is the answer to a ping. */
async function silent(client) {
  assert.deepEqual(await client.ask({ type: 'ping' }), { type: 'pong', timestamp: '<iso>' });
}

test('a window subscribes to files and sees a change', async (t) => {
  const server = await start(t);
  const { WebSocket } = server;
  const seen = [];

  const ws = new WebSocket('ws://localhost:3000/ws');
  ws.on('open', () => ws.send(JSON.stringify({ type: 'subscribe', channel: 'files' })));
  const done = new Promise((resolve) => {
    ws.on('message', (raw) => {
      const message = JSON.parse(raw);
      seen.push(message);
      if (message.type === 'subscribed') server.publish({ channel: 'files' }, 'file', { file: 'src/main.ts', event: 'change' });
      if (message.type === 'event') resolve();
    });
  });

  await soon(done, 'the event');
  assert.deepEqual(timeless(seen), [
    subscribed('files'),
    { type: 'event', channel: 'files', data: { timestamp: '<iso>', file: 'src/main.ts', event: 'change' }, timestamp: '<iso>' },
  ]);
});

test('subscribe, unsubscribe and ping are answered as the table says', async (t) => {
  const server = await start(t);
  const client = server.open(URL);
  assert.deepEqual(await client.ask({ type: 'subscribe', channel: 'git' }), subscribed('git'));
  assert.deepEqual(await client.ask({ type: 'unsubscribe', channel: 'git' }), { type: 'unsubscribed', channel: 'git', timestamp: '<iso>' });
  assert.deepEqual(await client.ask({ type: 'ping' }), { type: 'pong', timestamp: '<iso>' });
  assert.deepEqual(await client.ask({ type: 'ping', extra: [1, { deep: true }] }), { type: 'pong', timestamp: '<iso>' });
});

test('subscribing twice delivers once, and what was left is not delivered', async (t) => {
  const server = await start(t);
  const client = await subscribe(server, 'search');
  assert.deepEqual(await client.ask({ type: 'subscribe', channel: 'search' }), subscribed('search'));
  await client.ask({ type: 'subscribe', channel: 'git' });
  await client.ask({ type: 'unsubscribe', channel: 'git' });
  await server.publish({ channel: 'git' }, 'git', { type: 'commit', message: 'm' });
  await server.publish({ channel: 'search' }, 'search', { query: 'q', count: 0, total: 0, results: [] });
  assert.equal((await client.next()).channel, 'search');
  await silent(client);
});

// Channel, what a publisher gives, and a path at which broken data is to be refused.
const CHANNELS = [
  ['files', { file: 'src/main.ts', event: 'add' }, { file: 'src/main.ts', event: 'renamed' }, '/event'],
  [
    'diagnostics',
    { diagnostics: [{ file: 'a.ts', line: 1, column: 2, severity: 'error', message: 'no', code: 2304 }] },
    { diagnostics: [{ file: 'a.ts', line: 1, column: 2, severity: 'fatal', message: 'no' }] },
    '/diagnostics/0/severity',
  ],
  ['ai-response', { id: 'r1', chunk: 'Hel', index: 0, finished: false }, { id: 'r1', chunk: 'Hel', index: -1, finished: false }, '/index'],
  ['search', { query: 'q', count: 1, total: 9, results: [{ any: 1 }] }, { query: 'q', count: 1, total: '9', results: [] }, '/total'],
  ['validation', { valid: false, errors: ['e'], warnings: [], took: 3 }, { valid: 'no', errors: [], warnings: [] }, '/valid'],
  ['git', { type: 'checkout', message: 'main' }, { type: 'checkout', message: 7 }, '/message'],
];

for (const [channel, good, broken, path] of CHANNELS) {
  test(`${channel}: what fits its schema arrives whole, what breaks it reaches nobody`, async (t) => {
    const server = await start(t);
    const client = await subscribe(server, channel);

    const refused = await server.call('/api/publish', { channel, type: channel, data: broken });
    assert.equal(refused.status, 422);
    assert.match(refused.headers.get('content-type'), /^application\/problem\+json/);
    assert.ok(refused.body.errors.some((error) => error.path === path || error.path === `/data${path}`), JSON.stringify(refused.body));

    const given = { ...good, timestamp: '2024-01-01T00:00:00.000Z' };
    await server.publish({ channel }, channel, given);
    const event = await client.next();
    assert.deepEqual(event.data, given);
    assert.deepEqual(Object.keys(event).sort(), ['channel', 'data', 'timestamp', 'type']);

    await server.publish({ channel }, channel, good);
    assert.deepEqual(timeless(await client.next()), { type: 'event', channel, data: { ...good, timestamp: '<iso>' }, timestamp: '<iso>' });
    await silent(client);
  });
}

test('a custom channel carries any object, and nothing else', async (t) => {
  const server = await start(t);
  const client = await subscribe(server, 'custom:build');
  const data = { step: 1, nested: { list: [null, true, 'ü', 1.5, 12345678901234567890n.toString()] } };
  await server.publish({ channel: 'custom:build' }, 'x', data);
  assert.deepEqual(timeless(await client.next()), { type: 'event', channel: 'custom:build', data, timestamp: '<iso>' });
  assert.equal((await server.call('/api/publish', { channel: 'custom:build', type: 'x', data: [1] })).status, 422);
  await server.publish({ channel: 'custom:other' }, 'x', {});
  await silent(client);
});

test('chunks of one answer arrive in the order published', async (t) => {
  const server = await start(t);
  const client = await subscribe(server, 'ai-response');
  for (const index of range(100)) {
    await server.publish({ channel: 'ai-response' }, 'chunk', { id: 'r', chunk: `${index}`, index, finished: index === 99 });
  }
  const events = await client.some(100);
  assert.deepEqual(events.map((event) => event.data.index), range(100));
});

test('a message that is not of the protocol is answered with an error and the connection stays', async (t) => {
  const server = await start(t);
  const client = server.open(URL);
  const error = (text, more) => ({ type: 'error', error: text, ...more, timestamp: '<iso>' });
  assert.deepEqual(await client.ask('{not json'), error('invalid JSON'));
  assert.deepEqual(await client.ask(''), error('invalid JSON'));
  assert.deepEqual(await client.ask({ type: 'dance' }), error('unknown message type'));
  assert.deepEqual(await client.ask({ channel: 'files' }), error('unknown message type'));
  assert.deepEqual(await client.ask({ type: 7 }), error('unknown message type'));
  assert.deepEqual(await client.ask('[1,2]'), error('unknown message type'));
  for (const channel of ['nope', 'session:s', 'custom:', '']) {
    assert.deepEqual(await client.ask({ type: 'subscribe', channel }), error('unknown channel', { channel }), channel);
  }
  for (const message of [{ type: 'subscribe' }, { type: 'subscribe', channel: 3 }, { type: 'unsubscribe' }]) {
    const answer = await client.ask(message);
    assert.equal(answer.type, 'error');
    assert.notEqual(answer.error, 'unknown message type');
  }
  await silent(client);
});

test('history says who published what, over REST', async (t) => {
  const server = await start(t);
  const sent = await server.publish({ channel: 'git' }, 'git', { type: 'commit', message: 'first' });
  await server.publish({ channel: 'git' }, 'git', { type: 'commit', message: 'second' });
  const { body } = await server.call('/api/history?channel=git&limit=10');
  assert.deepEqual(body.events.map((event) => event.data.message), ['second', 'first']);
  const [, first] = body.events;
  assert.deepEqual(
    { id: first.id, channel: first.channel, offset: first.offset, epoch: first.epoch, source: first.source },
    { id: sent.id, channel: 'git', offset: 1, epoch: sent.epoch, source: 'api' },
  );
});

test('a window that reconnects by itself is served again after a restart', async (t) => {
  const db = folder(t);
  const first = await start(t, { db });
  const port = first.served.workspace.match(/:(\d+)\//)[1];
  const { WebSocket } = first;
  const ends = [];
  const events = [];
  let stopped = false;
  t.after(() => { stopped = true; });
  let joined;
  let arrived;

  function connect() {
    const ws = new WebSocket('ws://localhost:3000/ws');
    ws.on('open', () => ws.send(JSON.stringify({ type: 'subscribe', channel: 'files' })));
    ws.on('message', (data) => {
      const message = JSON.parse(data);
      if (message.type === 'subscribed') joined();
      if (message.type === 'event') { events.push(message.data.file); arrived(); }
    });
    ws.on('close', (code, reason) => {
      if (!stopped) { ends.push([code, reason.toString()]); setTimeout(connect, 20); }
    });
    ws.on('error', () => {});
  }

  const publish = async (server, file) => {
    const seen = new Promise((resolve) => { arrived = resolve; });
    await server.publish({ channel: 'files' }, 'file', { file, event: 'add' });
    await soon(seen, file);
  };
  let again = new Promise((resolve) => { joined = resolve; });
  connect();
  await soon(again, 'the first subscription');
  await publish(first, 'one');

  again = new Promise((resolve) => { joined = resolve; });
  await first.stop();
  const second = await start(t, { db, env: { WORKSPACE_PORT: port, AGENT_PORT: port } });
  await soon(again, 'the second subscription');
  await publish(second, 'two');
  stopped = true;

  assert.deepEqual(events, ['one', 'two']);
  assert.deepEqual(ends[0], [1001, 'server is stopping']);
  const { body } = await second.call('/api/history?channel=files');
  assert.deepEqual(body.events.map((event) => [event.offset, event.data.file]), [[2, 'two'], [1, 'one']]);
});

test('ping frames come, and a window that does not answer them goes', async (t) => {
  const server = await start(t, { env: { WORKSPACE_HEARTBEAT: '300ms' } });
  const good = server.open(URL);
  const deaf = server.open(URL, { autoPong: false });
  await soon(once(deaf.ws, 'ping'), 'a ping frame');
  assert.equal((await deaf.end()).code, 1006);
  await soon(once(good.ws, 'ping'), 'a ping frame');
  await silent(good);
  await server.until(async () => (await server.call('/api/connections')).body.connections.length === 1, 'the deaf window to be gone');
});

test('a window over its rate gets an error, one far over it is closed', async (t) => {
  const server = await start(t, { env: { WORKSPACE_RATE: '5/60s' } });
  const client = server.open(URL);
  for (const _ of range(5)) await silent(client);
  const answer = await client.ask({ type: 'ping' });
  assert.equal(answer.type, 'error');
  assert.match(answer.error, /rate/i);
  for (const _ of range(60)) client.ws.send('{"type":"ping"}');
  assert.deepEqual(await client.end(), { code: 1008, reason: 'far over the rate limit' });
});

test('a message over the limit closes that one connection', async (t) => {
  const server = await start(t, { env: { WORKSPACE_MESSAGE: '1KiB' } });
  const other = await subscribe(server, 'files');
  const client = server.open(URL);
  await silent(client);
  await client.send({ type: 'ping', pad: 'x'.repeat(2000) });
  assert.deepEqual(await client.end(), { code: 1009, reason: 'message too large' });
  await silent(other);
});
