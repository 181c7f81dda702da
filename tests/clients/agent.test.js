// The agent protocol, as the browsers of a chat agent speak it.

import assert from 'node:assert/strict';
import { range, soon, start, test, timeless } from './tramline.js';

const URL = 'ws://localhost:3000';
const STATUS = 'http://localhost:3000/api/websocket/status';
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;

/** Connects and wants to be served. */
async function connect(server, query = '') {
  const client = server.open(URL + query);
  await silent(client);
  return client;
}

/** Wants that nothing is on its way to a client: the next thing that comes is the echo of a test. */
async function silent(client) {
  const test = { type: 'test', data: { message: `${Math.random()}` } };
  assert.deepEqual(await client.ask(test), test);
}

/** Puts something on the bus. */
async function bus(server, type, data, more) {
  const { status, body } = await server.call('http://localhost:3000/events', { type, data, ...more });
  assert.equal(status, 202, JSON.stringify(body));
  return body;
}

test('a browser connects to the root, greets, and hears what is sent on the bus', async (t) => {
  const server = await start(t);
  const { WebSocket, fetch } = server;
  const seen = [];

  const ws = new WebSocket('ws://localhost:3000');
  ws.on('open', () => ws.send(JSON.stringify({ type: 'test', data: { message: 'Hello, WebSocket!' } })));
  const done = new Promise((resolve) => {
    ws.on('message', async (data) => {
      const message = JSON.parse(data);
      seen.push(message);
      if (message.type === 'test') {
        await fetch('http://localhost:3000/events', {
          method: 'POST',
          headers: { 'Content-Type': 'application/json' },
          body: JSON.stringify({ type: 'MessageSent', data: { content: 'hi' } }),
        });
      }
      if (message.type === 'messageReceived') resolve();
    });
  });

  await soon(done, 'the message');
  assert.deepEqual(seen[0], { type: 'test', data: { message: 'Hello, WebSocket!' } });
  assert.match(seen[1].data.id, UUID);
  seen[1].data.id = '<uuid>';
  assert.deepEqual(timeless(seen[1]), { type: 'messageReceived', data: { id: '<uuid>', timestamp: '<iso>', type: 'user', content: 'hi' } });
});

// On the bus, what was given, to the clients, what they get.
const TIME = '2024-01-01T00:00:00.000Z';
const BUS = [
  ['MessageSent', { id: 'm1', content: 'c', timestamp: TIME }, 'messageReceived', { id: 'm1', content: 'c', timestamp: TIME, type: 'user' }],
  ['MessageSent', { id: 'm1', content: 'c', timestamp: TIME, type: 'assistant' }, 'messageReceived', { id: 'm1', content: 'c', timestamp: TIME, type: 'assistant' }],
  ['MessageReceived', { id: 'm2', content: 'c', timestamp: TIME }, 'messageReceived', { id: 'm2', content: 'c', timestamp: TIME, type: 'assistant' }],
  ['activeIDEChanged', { port: 9000, workspacePath: '/w', previousPort: 8999 }, 'ideStatusChanged', { port: 9000, status: 'active', workspacePath: '/w', previousPort: 8999 }],
  ['userAppDetected', { url: 'http://localhost:5173', workspacePath: '/w' }, 'userAppDetected', { url: 'http://localhost:5173', workspacePath: '/w' }],
  ['connectionStatus', { connected: true, activePort: 1, lastActivity: TIME }, 'connectionStatus', { connected: true, activePort: 1, lastActivity: TIME }],
  ['workspaceChanged', { workspacePath: '/w', port: 1 }, 'workspaceChanged', { workspacePath: '/w', port: 1 }],
  ['connectionStateChanged', { connected: false, reconnecting: true, lastConnected: TIME, reconnectAttempts: 3 }, 'connectionStateChanged', { connected: false, reconnecting: true, lastConnected: TIME, reconnectAttempts: 3 }],
  ['anythingElse', { deep: [1, { a: null }] }, 'anythingElse', { deep: [1, { a: null }] }],
];

test('what is on the bus goes out under the names of the table', async (t) => {
  const server = await start(t);
  const clients = [await connect(server), await connect(server)];
  for (const [type, given, name, data] of BUS) {
    await bus(server, type, given);
    for (const client of clients) assert.deepEqual(await client.next(), { type: name, data }, type);
  }
  await bus(server, 'connectionStatus', { connected: false, activePort: null });
  assert.deepEqual(timeless(await clients[0].next()), {
    type: 'connectionStatus',
    data: { connected: false, activePort: null, lastActivity: '<iso>' },
  });
});

test('IDE events are on at first, go off and come on again', async (t) => {
  const server = await start(t);
  const client = await connect(server);
  const change = (port) => bus(server, 'activeIDEChanged', { port, workspacePath: '/w' });
  await change(1);
  assert.equal((await client.next()).data.port, 1);
  await client.send({ type: 'unsubscribe', data: { topic: 'ide' } });
  await silent(client);
  await change(2);
  await bus(server, 'userAppDetected', { url: 'u', workspacePath: '/w' });
  assert.equal((await client.next()).type, 'userAppDetected');
  await client.send({ type: 'subscribe', data: { topic: 'ide' } });
  await silent(client);
  await change(3);
  assert.equal((await client.next()).data.port, 3);
});

test('a private message reaches one client, a condition those for which it holds', async (t) => {
  const server = await start(t);
  const admin = await connect(server, '/?role=admin');
  const [{ id }] = (await server.call('/api/connections?protocol=agent')).body.connections;
  const guest = await connect(server, '/?role=guest');
  await bus(server, 'privateMessage', { secret: 1 }, { client: id });
  assert.deepEqual(await admin.next(), { type: 'privateMessage', data: { secret: 1 } });
  await silent(guest);
  await bus(server, 'note', { n: 1 }, { where: { query: { role: 'guest' } } });
  assert.deepEqual(await guest.next(), { type: 'note', data: { n: 1 } });
  await silent(admin);
  await bus(server, 'note', { n: 2 }, { where: { id } });
  assert.deepEqual(await admin.next(), { type: 'note', data: { n: 2 } });
  await silent(guest);
});

test('every message needs a type and data, and the answer says what is wrong', async (t) => {
  const server = await start(t);
  const client = await connect(server);
  const table = [
    ['{', 'Invalid message format'],
    ['', 'Invalid message format'],
    ['"text"', 'Invalid message format'],
    ['[]', 'Invalid message format'],
    [{ data: {} }, 'Missing required field: type'],
    [{ type: 'test' }, 'Missing required field: data'],
    [{ type: 'test', data: 'x' }, 'Invalid type for data: expected object'],
    [{ type: 'test', data: [] }, 'Invalid type for data: expected object'],
    [{ type: 'test', data: null }, 'Invalid type for data: expected object'],
    [{ type: 5, data: {} }, 'Invalid type for type: expected string'],
  ];
  for (const [message, error] of table) assert.deepEqual(await client.ask(message), { type: 'error', error }, JSON.stringify(message));
  await silent(client);
});

test('what a browser says is kept for the application and not mirrored', async (t) => {
  const server = await start(t);
  const [client, other] = [await connect(server), await connect(server)];
  await client.send({ type: 'userTyped', data: { text: 'hello' } });
  await silent(client);
  await silent(other);
  const { body } = await server.call('/api/history?type=userTyped');
  assert.deepEqual(body.events.map((event) => [event.data, event.source]), [[{ text: 'hello' }, 'agent']]);
  assert.ok(body.events[0].client);
});

test('100 messages a minute: over it an answer says when to come back, far over it 1008', async (t) => {
  const server = await start(t);
  const client = server.open(URL);
  for (const _ of range(100)) await silent(client);
  // Meanwhile one more may have become free every 0.6 seconds.
  let answer;
  for (const _ of range(100)) {
    answer = await client.ask({ type: 'test', data: {} });
    if (answer.type === 'error') break;
  }
  const { retryAfter, ...rest } = answer;
  assert.deepEqual(rest, { type: 'error', error: 'Rate limit exceeded' });
  assert.ok(Number.isInteger(retryAfter) && retryAfter >= 1 && retryAfter <= 60, `${retryAfter}`);
  for (const _ of range(1100)) client.ws.send('{"type":"test","data":{}}');
  assert.equal((await client.end()).code, 1008);
});

test('one connection more than allowed closes the oldest', async (t) => {
  const server = await start(t, { env: { AGENT_MAX_CONNECTIONS: '2' } });
  const [first, second] = [await connect(server), await connect(server)];
  const third = await connect(server);
  assert.equal((await first.end()).code, 1013);
  await silent(second);
  await silent(third);
});

test('the heartbeat comes as a message', async (t) => {
  const server = await start(t, { env: { AGENT_HEARTBEAT: '100ms' } });
  const client = server.open(URL);
  assert.deepEqual(timeless(await client.some(2)), range(2).map(() => ({ type: 'heartbeat', data: { timestamp: '<iso>' } })));
});

test('the status page has exactly its keys', async (t) => {
  const server = await start(t);
  const empty = (await server.call(STATUS)).body;
  assert.deepEqual([empty.success, empty.data.connected, empty.data.clients, empty.data.messageCount], [true, false, 0, 0]);
  await connect(server);
  const { status, body } = await server.call(STATUS);
  assert.equal(status, 200);
  assert.deepEqual(Object.keys(body).sort(), ['data', 'success']);
  assert.deepEqual(Object.keys(body.data).sort(), ['clients', 'connected', 'lastActivity', 'messageCount', 'uptime']);
  const { uptime, ...rest } = timeless(body.data);
  assert.deepEqual(rest, { connected: true, clients: 1, lastActivity: '<iso>', messageCount: 2 });
  assert.ok(Number.isInteger(uptime) && uptime >= 0);
});

test('workspace and agent share a port: the path chooses', async (t) => {
  const server = await start(t);
  const [agent, workspace] = [server.open('ws://localhost:3000/'), server.open('ws://localhost:3000/ws')];
  assert.deepEqual(await agent.ask({ type: 'ping' }), { type: 'error', error: 'Missing required field: data' });
  assert.equal((await workspace.ask({ type: 'ping' })).type, 'pong');
});
