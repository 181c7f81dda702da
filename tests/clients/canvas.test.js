// The canvas protocol, as a platform's pages speak it.

import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';
import { once } from 'node:events';
import { folder, range, soon, start, test, timeless } from './tramline.js';

const URL = 'ws://localhost:3001/ws';
const STATS = 'http://localhost:3001/api/ws/stats';

/** Connects and reads the greeting. */
async function connect(server, query = '') {
  const client = server.open(URL + query);
  const { clientId, ...greeting } = await client.next();
  assert.deepEqual(timeless(greeting), { type: 'connection', status: 'connected', timestamp: '<iso>' });
  assert.match(clientId, /^client_\d{13}_\w+$/);
  return Object.assign(client, { id: clientId });
}

async function silent(client) {
  assert.deepEqual(await client.ask({ type: 'ping' }), { type: 'pong', timestamp: '<iso>' });
}

test('a page connects for its user and session and follows a run', async (t) => {
  const server = await start(t);
  const { WebSocket, fetch } = server;
  const seen = [];
  const userId = 'user_123';
  const sessionId = 'session_456';

  const ws = new WebSocket(`ws://localhost:3001/ws?userId=${userId}&sessionId=${sessionId}`);
  const done = new Promise((resolve) => {
    ws.on('message', (data) => {
      const message = JSON.parse(data.toString());
      seen.push(message);
      if (message.type === 'ai_complete') resolve();
    });
  });
  ws.on('open', () => ws.send(JSON.stringify({ type: 'ping' })));
  await server.until(() => seen.find((message) => message.type === 'pong') ?? fetch(STATS).then(() => false), 'the pong');
  const publish = (type, data) =>
    fetch('http://localhost:4000/api/publish', {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify({ session: sessionId, type, data }),
    });
  await publish('ai_start', { task: { prompt: 'a door', mode: 'create', targetFile: 'door.ts' } });
  await publish('ai_progress', { progress: { chunksReceived: 1, contentLength: 12 } });
  await publish('ai_complete', { result: { mode: 'create', contentLength: 12, chunks: 1 } });
  await soon(done, 'ai_complete');

  assert.deepEqual(seen.map((message) => message.type), ['connection', 'pong', 'ai_start', 'ai_progress', 'ai_complete']);
});

const RUNS = [
  ['ai_start', { task: { prompt: 'p', mode: 'm', targetFile: 'f' } }, { task: { prompt: 'p' } }, '/task/mode'],
  ['ai_progress', { progress: { chunksReceived: 2, contentLength: 3 } }, { progress: { chunksReceived: -2, contentLength: 3 } }, '/progress/chunksReceived'],
  ['ai_complete', { result: { mode: 'm', contentLength: 3, chunks: 2 } }, { result: 'done' }, '/result'],
  ['ai_error', { error: { message: 'no', type: 'timeout' } }, { error: { message: 'no', type: 5 } }, '/error/type'],
];

for (const [type, good, broken, path] of RUNS) {
  test(`${type}: exactly its keys to its session, broken ones to nobody`, async (t) => {
    const server = await start(t);
    const client = await connect(server, '?sessionId=s1');
    const other = await connect(server, '?sessionId=s2');
    const refused = await server.call('/api/publish', { session: 's1', type, data: broken });
    assert.equal(refused.status, 422);
    assert.ok(refused.body.errors.some((error) => error.path.endsWith(path)), JSON.stringify(refused.body));
    await server.publish({ session: 's1' }, type, good);
    assert.deepEqual(timeless(await client.next()), { type, sessionId: 's1', ...good, timestamp: '<iso>' });
    await silent(client);
    await silent(other);
    const { body } = await server.call('/api/history?channel=session:s1');
    assert.deepEqual(body.events.map((event) => event.type), [type]);
  });
}

test('a notification reaches every connection of its user and no other', async (t) => {
  const server = await start(t);
  const mine = [await connect(server, '?userId=u1'), await connect(server, '?userId=u1&sessionId=s')];
  const others = [await connect(server, '?userId=u2'), await connect(server)];
  const { delivered } = await server.publish({ user: 'u1' }, 'notification', { message: 'hello' });
  assert.equal(delivered, 2);
  for (const client of mine) {
    assert.deepEqual(timeless(await client.next()), { type: 'notification', message: 'hello', timestamp: '<iso>' });
  }
  for (const client of others) await silent(client);
  assert.equal((await server.call('/api/publish', { user: 'u1', type: 'notification', data: {} })).status, 422);
});

test('a connection has one session at a time', async (t) => {
  const server = await start(t);
  const client = await connect(server, '?sessionId=a');
  assert.deepEqual(await client.ask({ type: 'subscribe', sessionId: 'b' }), { type: 'subscribed', sessionId: 'b', timestamp: '<iso>' });
  await server.publish({ session: 'a' }, 'ai_error', { error: { message: 'm', type: 't' } });
  await silent(client);
  await server.publish({ session: 'b' }, 'ai_error', { error: { message: 'm', type: 't' } });
  assert.equal((await client.next()).sessionId, 'b');
  assert.deepEqual(await client.ask({ type: 'unsubscribe' }), { type: 'unsubscribed', timestamp: '<iso>' });
  await server.publish({ session: 'b' }, 'ai_error', { error: { message: 'm', type: 't' } });
  await silent(client);
});

test('a message that is not of the protocol is answered with an error', async (t) => {
  const server = await start(t);
  const client = await connect(server);
  for (const wrong of ['{', '', 'null', '[]', { type: 'dance' }, {}, { type: 'subscribe' }, { type: 'subscribe', sessionId: 5 }, { type: 'subscribe', sessionId: '' }]) {
    const { error, ...rest } = await client.ask(wrong);
    assert.deepEqual(rest, { type: 'error', timestamp: '<iso>' });
    assert.ok(typeof error === 'string' && error.length > 0, JSON.stringify(wrong));
  }
  await silent(client);
});

test('the statistics page has exactly its keys, and its total outlives a restart', async (t) => {
  const db = folder(t);
  const first = await start(t, { db });
  const known = await connect(first, '?userId=user_123&sessionId=session_456');
  await connect(first);
  const gone = await connect(first);
  gone.ws.close();
  await gone.end();
  const page = await first.until(async () => {
    const answer = await first.call(STATS);
    return answer.body.activeConnections === 2 && answer;
  }, 'two connections');
  assert.equal(page.status, 200);
  assert.match(page.headers.get('content-type'), /^application\/json/);
  assert.deepEqual(Object.keys(page.body).sort(), ['activeConnections', 'clients', 'totalConnections']);
  assert.equal(page.body.totalConnections, 3);
  assert.equal(page.body.clients.length, 2);
  assert.deepEqual(
    page.body.clients.find((client) => client.id === known.id),
    { id: known.id, userId: 'user_123', sessionId: 'session_456', isAlive: true, state: 1 },
  );
  await first.stop();

  const second = await start(t, { db });
  await connect(second);
  const { body } = await second.call(STATS);
  assert.deepEqual([body.totalConnections, body.activeConnections], [4, 1]);
});

test('messages of many megabytes pass both ways', async (t) => {
  const server = await start(t);
  const client = await connect(server, '?sessionId=s');
  await client.send({ type: 'ping', pad: 'x'.repeat(32 << 20) });
  assert.equal((await client.next()).type, 'pong');
  const message = 'ü'.repeat(1 << 20);
  await server.publish({ session: 's' }, 'ai_error', { error: { message, type: 't' } });
  assert.equal((await client.next()).error.message, message);
});

// Tokens, as any library makes them.
const SECRET = 'a-secret-of-thirty-two-characters';
const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
function token(claims, { secret = SECRET, alg = 'HS256' } = {}) {
  const text = `${part({ alg, typ: 'JWT' })}.${part(claims)}`;
  return `${text}.${alg === 'none' ? '' : createHmac('sha256', secret).update(text).digest('base64url')}`;
}
const inSeconds = (seconds) => Math.floor(Date.now() / 1000) + seconds;

test('with a secret only a valid token gets in, and its subject is the user', async (t) => {
  const server = await start(t, { env: { JWT_SECRET: SECRET } });
  const wrong = [
    '',
    '?token=',
    '?token=rubbish',
    `?token=${token({ sub: 'u1', exp: inSeconds(60) }, { secret: 'another-secret-of-the-same-length' })}`,
    `?token=${token({ sub: 'u1', exp: inSeconds(-3600) })}`,
    `?token=${token({ sub: 'u1', exp: inSeconds(60) }, { alg: 'none' })}`,
  ];
  for (const query of wrong) {
    const client = server.open(URL + query);
    let received = 0;
    client.ws.on('message', () => received++);
    await soon(client.opened, 'the handshake');
    assert.deepEqual(await client.end(), { code: 1008, reason: 'Unauthorized' });
    assert.equal(received, 0);
  }
  const client = await connect(server, `?userId=someone&token=${token({ sub: 'u1', exp: inSeconds(600) })}`);
  assert.equal((await server.publish({ user: 'someone' }, 'notification', { message: 'no' })).delivered, 0);
  await server.publish({ user: 'u1' }, 'notification', { message: 'yes' });
  assert.equal((await client.next()).message, 'yes');
});

test('a token that runs out closes its connection then', async (t) => {
  const server = await start(t, { env: { JWT_SECRET: SECRET } });
  const client = await connect(server, `?token=${token({ sub: 'u1', exp: inSeconds(2) })}`);
  await silent(client);
  const { code } = await client.end();
  assert.equal(code, 1008);
});

test('a page that does not answer the last ping is terminated at the next', async (t) => {
  const server = await start(t, { env: { CANVAS_HEARTBEAT: '200ms' } });
  const good = await connect(server);
  const client = server.open(URL, { autoPong: false });
  assert.equal((await client.end()).code, 1006);
  await silent(good);
});

test('events of one session arrive in the order published', async (t) => {
  const server = await start(t);
  const client = await connect(server, '?sessionId=s');
  for (const n of range(50)) await server.publish({ session: 's' }, 'ai_progress', { progress: { chunksReceived: n, contentLength: n } });
  const events = await client.some(50);
  assert.deepEqual(events.map((event) => event.progress.chunksReceived), range(50));
});

test('users and sessions may be called what people call them', async (t) => {
  const server = await start(t);
  for (const name of ['Ann Lee', 'ann@example.org', 'a/b', 'Zoë', 'a:b', '{id}', 'x'.repeat(200)]) {
    const client = await connect(server, `?userId=${encodeURIComponent(name)}`);
    await server.publish({ user: name }, 'notification', { message: name });
    assert.equal((await client.next()).message, name);
    assert.deepEqual(await client.ask({ type: 'subscribe', sessionId: name }), { type: 'subscribed', sessionId: name, timestamp: '<iso>' });
    await server.publish({ session: name }, 'ai_error', { error: { message: 'm', type: 't' } });
    assert.equal((await client.next()).sessionId, name);
  }
  for (const name of ['*', 'a\nb', 'x'.repeat(201)]) {
    const { ws } = server.open(`${URL}?userId=${encodeURIComponent(name)}`);
    const [, response] = await soon(once(ws, 'unexpected-response'), 'a refusal');
    response.resume();
    assert.equal(response.statusCode, 400, name);
  }
});
