// npm `ws` over `wss://`, as it is: whom it trusts, messages of all sizes, compression, many at once, and how a connection ends.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdirSync, writeFileSync } from 'node:fs';
import { get } from 'node:https';
import { join } from 'node:path';
import { certificate } from './certificate.js';
import { folder, range, soon, start, test } from './tramline.js';

const ROUTES = `
version: 1
store: "\${DATABASE_URL:-sqlite://data/tramline.db}"
api: { listen: "127.0.0.1:0", tls: &pair { cert: tls/tls.crt, key: tls/tls.key } }
channels: { room: {} }
protocols:
  chat:
    listen: 127.0.0.1:0/chat
    tls: *pair
    limits: { message: 8MiB, outbox: 32MiB }
    compress: { above: 1KiB }
    messages:
      join: { join: room, reply: { type: joined } }
      say: { to: room, data: { n: $.n } }
      echo: { reply: { type: echo, text: $.text } }
      bye: { close: [4001, bye] }
    deliver: { type: said, n: $event.data.n }
`;

/** A server with a certificate of its own, and clients that trust it. */
async function served(t) {
  const [dir, { cert, key }] = [folder(t), certificate()];
  mkdirSync(join(dir, 'tls'));
  writeFileSync(join(dir, 'routes.yaml'), ROUTES);
  writeFileSync(join(dir, 'tls/tls.crt'), cert);
  writeFileSync(join(dir, 'tls/tls.key'), key);
  const server = await start(t, { args: ['--config', join(dir, 'routes.yaml')] });
  const url = server.served.chat;
  assert.match(url, /^wss:\/\//);
  return { server, url, cert, open: (options) => server.open(url, { ca: cert, ...options }) };
}

test('a client over TLS that trusts the certificate is served, and one that does not goes away', async (t) => {
  const { server, url, cert, open } = await served(t);
  assert.deepEqual(await open().ask({ type: 'join' }), { type: 'joined' });
  const [error] = await soon(once(new server.WebSocket(url), 'error'), 'the refusal');
  assert.equal(error.code, 'DEPTH_ZERO_SELF_SIGNED_CERT');
  const other = new server.WebSocket(url, { ca: certificate().cert });
  assert.match((await soon(once(other, 'error'), 'the refusal'))[0].code, /SELF_SIGNED|UNABLE_TO_VERIFY|SIGNATURE/);
  const [health] = await soon(once(get(`${server.served.api}/healthz`, { ca: cert }), 'response'), 'the answer');
  health.resume();
  assert.equal(health.statusCode, 200);
});

for (const perMessageDeflate of [false, true]) {
  test(`messages of all sizes over TLS arrive as they were sent, compression ${perMessageDeflate ? 'on' : 'off'}`, async (t) => {
    const { open } = await served(t);
    const client = open({ perMessageDeflate });
    for (const length of [0, 1, 125, 126, 16_383, 16_384, 65_536, 3 << 20]) {
      const text = range(length).map((n) => String.fromCharCode(97 + ((n * n + (n >> 7)) % 26))).join('');
      const answer = await client.ask({ type: 'echo', text });
      assert.ok(answer.text === text, `${length} characters`);
    }
    assert.equal(client.ws.extensions, perMessageDeflate ? 'permessage-deflate' : '');
  });
}

test('many clients over TLS get every message in order', async (t) => {
  const { open } = await served(t);
  const clients = range(30).map(() => open());
  await Promise.all(clients.map((client) => client.ask({ type: 'join' })));
  for (const n of range(200)) await clients[0].send({ type: 'say', n });
  const wanted = range(200).map((n) => ({ type: 'said', n }));
  for (const client of clients) assert.deepEqual(await client.some(200), wanted);
});

test('connections over TLS end as they do without', async (t) => {
  const { server, open } = await served(t);
  const [told, leaves, stays] = [open(), open(), open()];
  await told.send({ type: 'bye' });
  assert.deepEqual(await told.end(), { code: 4001, reason: 'bye' });
  await leaves.ask({ type: 'join' });
  leaves.ws.close(1000, 'enough');
  assert.deepEqual(await leaves.end(), { code: 1000, reason: 'enough' });
  await stays.ask({ type: 'join' });
  const stopped = server.stop();
  assert.equal((await stays.end()).code, 1001);
  await stopped;
});
