// What a WebSocket and an HTTP client may do that no protocol's page names: families, frames, closes, origins, load.

import assert from 'node:assert/strict';
import { lookup } from 'node:dns/promises';
import { once } from 'node:events';
import { request } from 'node:http';
import { networkInterfaces } from 'node:os';
import { range, soon, start, test } from './tramline.js';

const URL = 'ws://localhost:3000/ws';
const HAS_V6 = Object.values(networkInterfaces()).flat().some((address) => address.address === '::1');

const pong = async (client) => assert.equal((await client.ask({ type: 'ping' })).type, 'pong');

async function subscribe(server, channel, options) {
  const client = server.open(URL, options);
  assert.equal((await client.ask({ type: 'subscribe', channel })).type, 'subscribed');
  return client;
}

/** The status with which a handshake is refused; 101 where it is not. */
function handshake(server, url, options) {
  const ws = new server.WebSocket(url, options);
  ws.on('error', () => {});
  const refused = once(ws, 'unexpected-response').then(([, response]) => { response.resume(); return response.statusCode; });
  const opened = once(ws, 'open').then(() => { ws.terminate(); return 101; });
  opened.catch(() => {});
  refused.catch(() => {});
  return soon(Promise.race([opened, refused]), 'the handshake');
}

for (const [family, url, there] of [[4, 'ws://127.0.0.1:3000/ws', true], [6, 'ws://[::1]:3000/ws', HAS_V6]]) {
  test(`localhost is served over IPv${family}`, async (t) => {
    if (!there) return t.skip('this machine has no such address');
    const server = await start(t);
    await pong(server.open(url));
    // Not every machine's hosts file has the name in both families.
    const named = await lookup('localhost', { family }).catch(() => null);
    if (named) await pong(server.open(URL, { family }));
  });
}

test('compression is offered by the client and declined', async (t) => {
  const server = await start(t);
  const client = server.open(URL, { perMessageDeflate: { threshold: 0 } });
  await pong(client);
  assert.equal(client.ws.extensions, '');
});

test('JSON in a binary frame is the same JSON', async (t) => {
  const server = await start(t);
  await pong(server.open(URL));
  const client = server.open(URL);
  assert.equal((await client.ask(Buffer.from('{"type":"ping"}'))).type, 'pong');
  const kind = once(client.ws, 'message');
  client.ws.send(new Uint8Array(Buffer.from('{"type":"ping"}')));
  assert.equal((await kind)[1], false, 'the answer is a text frame');
});

test('a fragmented message is one message, also with a ping between its parts', async (t) => {
  const server = await start(t);
  const client = server.open(URL);
  await soon(client.opened, 'the connection');
  client.ws.send('{"type":', { fin: false });
  client.ws.ping('between');
  client.ws.send('"pi', { fin: false });
  client.ws.send('ng"}', { fin: true });
  assert.equal((await client.next()).type, 'pong');
});

test('a ping frame is answered with its bytes', async (t) => {
  const server = await start(t);
  const client = server.open(URL);
  await soon(client.opened, 'the connection');
  const answer = once(client.ws, 'pong');
  client.ws.ping(Buffer.from('0123456789'.repeat(12)));
  assert.equal((await soon(answer, 'the pong'))[0].toString(), '0123456789'.repeat(12));
});

test('a text frame that is not UTF-8 ends with 1007', async (t) => {
  const server = await start(t);
  const client = server.open(URL);
  await soon(client.opened, 'the connection');
  client.ws.send(Buffer.from([0x22, 0xff, 0xfe, 0x22]), { binary: false });
  assert.equal((await client.end()).code, 1007);
});

test('a frame against the rules ends with 1002', async (t) => {
  const server = await start(t);
  const client = server.open(URL);
  await soon(client.opened, 'the connection');
  client.ws._socket.write(Buffer.from([0xc1, 0x80, 0, 0, 0, 0])); // A reserved bit is set.
  assert.equal((await client.end()).code, 1002);
});

test('close() is answered with its own code, terminate() leaves nothing behind', async (t) => {
  const server = await start(t);
  const [polite, bare, rude, stays] = [
    await subscribe(server, 'files'),
    await subscribe(server, 'files'),
    await subscribe(server, 'files'),
    await subscribe(server, 'git'),
  ];
  polite.ws.close(4000, 'bye');
  assert.equal((await polite.end()).code, 4000);
  bare.ws.close();
  assert.ok([1000, 1005].includes((await bare.end()).code));
  rude.ws.terminate();
  await server.until(async () => (await server.call('/api/connections')).body.connections.length === 1, 'the others to be gone');
  assert.equal((await server.publish({ channel: 'files' }, 'file', { file: 'f', event: 'add' })).delivered, 0);
  await pong(stays);
});

test('a message of nearly the limit passes, one above it ends with 1009', async (t) => {
  const server = await start(t);
  const client = server.open(URL);
  await client.send({ type: 'ping', pad: 'x'.repeat((1 << 20) - 100) });
  assert.equal((await client.next()).type, 'pong');
  await client.send({ type: 'ping', pad: 'x'.repeat(1 << 20) });
  assert.equal((await client.end()).code, 1009);
});

test('stopping tells every client 1001', async (t) => {
  const server = await start(t);
  const clients = await Promise.all(range(20).map(() => subscribe(server, 'files')));
  await server.stop();
  for (const client of clients) assert.deepEqual(await client.end(), { code: 1001, reason: 'server is stopping' });
});

test('pages of this machine are let in, pages from elsewhere are not', async (t) => {
  const server = await start(t);
  const own = server.lead('http://localhost:3000');
  for (const origin of [undefined, own, 'http://localhost:5173', 'https://127.0.0.1:8443', 'http://[::1]:3000', 'HTTP://LOCALHOST']) {
    assert.equal(await handshake(server, URL, { origin }), 101, origin);
  }
  for (const origin of ['https://evil.example', 'null', 'http://localhost.evil.example', 'file://', 'http://127.0.0.1.evil.example']) {
    assert.equal(await handshake(server, URL, { origin }), 403, origin);
    assert.equal((await server.call('http://localhost:3000/api/websocket/status', undefined, { origin })).status, 403, origin);
    assert.equal((await server.call('/api/publish', { channel: 'git', type: 'g', data: { type: 't', message: 'm' } }, { origin })).status, 403);
    assert.equal((await server.call('http://localhost:3000/events', { type: 'x', data: {} }, { origin })).status, 403, origin);
  }
  assert.equal((await server.call('/api/history?channel=git')).body.events.length, 0);
});

test('a listed origin is let in, and only where it is listed', async (t) => {
  const server = await start(t, { env: { WORKSPACE_ORIGINS: 'https://app.example' } });
  const origin = 'https://app.example';
  assert.equal(await handshake(server, URL, { origin }), 101);
  assert.equal(await handshake(server, 'ws://localhost:3000/', { origin }), 403);
  assert.equal(await handshake(server, URL, { origin: 'https://app.example.evil' }), 403);
});

test('a foreign name that leads here is refused', async (t) => {
  const server = await start(t);
  assert.equal(await handshake(server, URL, { headers: { Host: 'evil.example' } }), 403);
  for (const port of [3000, 4000]) {
    const { hostname, port: at } = new globalThis.URL(server.lead(`http://localhost:${port}/healthz`));
    const call = request({ hostname, port: at, path: '/api/channels', headers: { Host: 'evil.example' } });
    call.end();
    const [response] = await soon(once(call, 'response'), 'an answer');
    response.resume();
    assert.equal(response.statusCode, 403);
  }
});

test('what is not served says so', async (t) => {
  const server = await start(t);
  assert.equal(await handshake(server, 'ws://localhost:3000/other'), 404);
  assert.equal(await handshake(server, 'ws://localhost:3001/'), 404);
  assert.equal((await server.call('http://localhost:3000/ws')).status, 426);
  assert.equal((await server.call('http://localhost:3000/events')).status, 405);
  assert.equal((await server.call('/api/nothing')).status, 404);
  assert.equal((await server.call('/api/publish', { channel: 'nobody', type: 'x', data: {} })).status, 404);
  assert.equal((await server.call('/api/publish', { client: 'nobody', type: 'x', data: {} })).status, 404);
  assert.equal((await server.call('/api/publish', { chanel: 'files' })).status, 400);
});

test('the pages of the REST interface answer a fetch', async (t) => {
  const server = await start(t);
  const client = await subscribe(server, 'git');
  for (const path of ['/healthz', '/readyz', '/api/channels', '/api/connections', '/api/routes', '/api/plugins', '/api/sources', '/api/stats']) {
    const { status, headers } = await server.call(path);
    assert.equal(status, 200, path);
    assert.match(headers.get('content-type'), /^application\/json/, path);
  }
  const metrics = await server.fetch('http://localhost:4000/metrics');
  assert.match(metrics.headers.get('content-type'), /^text\/plain; version=0\.0\.4/);
  assert.match(await metrics.text(), /^# HELP /m);

  const once = { id: 'the-same', channel: 'git', type: 'g', data: { type: 't', message: 'm' } };
  const [first, second] = [await server.call('/api/publish', once), await server.call('/api/publish', once)];
  assert.deepEqual([first.status, second.status, second.body], [202, 202, first.body]);
  assert.equal((await client.next()).data.message, 'm');
  await pong(client);

  const text = await server.fetch('http://localhost:4000/api/publish', { method: 'POST', body: JSON.stringify(once) });
  assert.equal(text.status, 415);
});

test('with a token every call but health needs it', async (t) => {
  const server = await start(t, { env: { API_TOKEN: 'open-sesame' } });
  assert.equal((await server.call('/healthz')).status, 200);
  for (const headers of [{}, { authorization: 'Bearer wrong' }]) {
    assert.equal((await server.call('/api/channels', undefined, headers)).status, 401);
  }
  assert.equal((await server.call('/api/channels', undefined, { authorization: 'Bearer open-sesame' })).status, 200);
});

test('a hundred clients get every event once and in one order', async (t) => {
  const server = await start(t);
  const clients = await Promise.all(range(100).map(() => subscribe(server, 'custom:load')));
  // Eight publishers at once: the order among them is the channel's, and the same for everybody.
  await Promise.all(
    range(8).map(async (publisher) => {
      for (const n of range(25)) await server.publish({ channel: 'custom:load' }, 'n', { publisher, n });
    }),
  );
  const all = await Promise.all(clients.map((client) => client.some(200)));
  const lines = (events) => events.map(({ data }) => `${data.publisher}:${data.n}`);
  const [first] = all.map(lines);
  assert.equal(new Set(first).size, 200);
  for (const publisher of range(8)) {
    assert.deepEqual(first.filter((line) => line.startsWith(`${publisher}:`)), range(25).map((n) => `${publisher}:${n}`));
  }
  for (const events of all) assert.deepEqual(lines(events), first);
  for (const client of clients) await pong(client);
});

test('a client that stops reading is closed with 1013 and disturbs nobody', async (t) => {
  const server = await start(t, { env: { WORKSPACE_OUTBOX: '256KiB' } });
  const healthy = await Promise.all(range(10).map(() => subscribe(server, 'custom:load')));
  const stalled = await subscribe(server, 'custom:load');
  stalled.ws._socket.pause();
  const pad = 'x'.repeat(64 << 10);
  let sent = 0;
  // The kernel's buffers fill first, then the outbox; 64 MiB is more than both.
  while (sent < 1024) {
    const { delivered } = await server.publish({ channel: 'custom:load' }, 'n', { n: sent, pad });
    const events = await Promise.all(healthy.map((client) => client.next()));
    for (const event of events) assert.equal(event.data.n, sent);
    sent += 1;
    if (delivered === 10) break;
  }
  assert.ok(sent < 1024, 'the stalled client was never let go');
  const peers = (await server.call('/api/connections?protocol=workspace')).body.connections;
  assert.ok(peers.length <= 11);
  // When it reads again it finds what was on its way and why it ended.
  stalled.ws._socket.resume();
  assert.deepEqual(await stalled.end(), { code: 1013, reason: 'too slow: outbox full' });
  for (const client of healthy) await pong(client);
  await server.until(
    async () => (await server.call('/api/connections?protocol=workspace')).body.connections.length === 10,
    'the stalled client to be gone',
  );
});

test('where everything asks for any port, what is announced is what is served', async (t) => {
  const ports = { WORKSPACE_PORT: '0', CANVAS_PORT: '0', AGENT_PORT: '0', API_PORT: '0' };
  const server = await start(t, { ports });
  const types = async (name, message) => [name, (await server.open(server.served[name]).ask(message)).type];
  assert.deepEqual(await types('workspace', { type: 'ping' }), ['workspace', 'pong']);
  assert.deepEqual(await types('canvas', { type: 'ping' }), ['canvas', 'connection']);
  assert.deepEqual(await types('agent', { type: 'test', data: {} }), ['agent', 'test']);
  assert.equal((await fetch(`${server.served.api}/healthz`)).status, 200);
});

test('odd messages are answered, one each, and the connection goes on', async (t) => {
  const server = await start(t);
  const client = server.open(URL);
  const odd = [
    '['.repeat(200_000),
    `{"type":${'['.repeat(50_000)}${']'.repeat(50_000)}}`,
    `{"type":"subscribe","channel":"${'a'.repeat(100_000)}"}`,
    '{"type":"subscribe","channel":"custom:\\u0000"}',
    '{"type":"subscribe","channel":"custom:a\\nb"}',
    '{"type":"subscribe","channel":"custom:*"}',
    '{"type":"subscribe","channel":"../files"}',
    '{"type":"subscribe","channel":{"$":1}}',
    '{"type":"__proto__"}',
    '{"type":"_"}',
    '{"type":"ping"} {"type":"ping"}',
    "{'type':'ping'}",
    '{"type":1e999}',
    'NaN',
    'null',
    '0',
    '"ping"',
    '\ufeff{"type":"ping"}',
  ];
  for (const text of odd) assert.equal((await client.ask(text)).type, 'error', text.slice(0, 60));
  await pong(client);
});

test('one connection cannot subscribe without end', async (t) => {
  const server = await start(t, { env: { WORKSPACE_RATE: '10000/s' } });
  const client = server.open(URL);
  const answers = [];
  for (const n of range(150)) answers.push((await client.ask({ type: 'subscribe', channel: `custom:${n}` })).type);
  assert.deepEqual(answers, [...range(100).map(() => 'subscribed'), ...range(50).map(() => 'error')]);
  await pong(client);
});

test('a broken neighbour costs nobody a message', async (t) => {
  const server = await start(t);
  const clients = await Promise.all(range(30).map(() => subscribe(server, 'custom:crowd')));
  const [leaving, staying] = [clients.slice(0, 20), clients.slice(20)];
  for (const n of range(100)) {
    if (n % 5 === 0) leaving[n / 5].ws.terminate();
    await server.publish({ channel: 'custom:crowd' }, 'n', { n });
  }
  for (const client of staying) assert.deepEqual((await client.some(100)).map((event) => event.data.n), range(100));
});
