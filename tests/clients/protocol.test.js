// A protocol that nobody knew when the server was built: twelve lines of YAML and a script, written here, spoken by `ws`.

import assert from 'node:assert/strict';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { folder, start, test } from './tramline.js';

const ROUTES = `
version: 1
store: "\${DATABASE_URL:-sqlite://data/tramline.db}"
api: { listen: "127.0.0.1:0" }
channels:
  "table:{id}": { join: [auction], history: true }
protocols:
  auction:
    listen: localhost:0/auction/{id}
    codec: json
    type: /op
    messages:
      sit: { join: "table:{$path.id}", reply: { op: seated, at: $path.id, as: $.name }, set: { state.name: $.name } }
      bid: { transform: price, to: "table:{$path.id}", reply: { op: ok } }
      ask: answer
    deliver: { op: $event.type, "...": $event.data }
    error: { op: no, why: $error.message }
`;

const SCRIPT = `
fn price(conn, msg) {
    if type_of(msg.cents) != "i64" || msg.cents <= 0 { throw "a bid is a whole number of cents"; }
    if msg.cents > 100000 { return (); }
    #{ op: "bid", by: conn.state.name, euros: msg.cents / 100.0 }
}

fn answer(conn, msg) {
    conn.reply(#{ op: "answer", text: msg.text.to_upper() });
}
`;

test('a protocol made at run time is served', async (t) => {
  const dir = folder(t);
  mkdirSync(join(dir, 'plugins'));
  writeFileSync(join(dir, 'routes.yaml'), ROUTES);
  writeFileSync(join(dir, 'plugins/auction.rhai'), SCRIPT);
  const server = await start(t, { args: ['--config', join(dir, 'routes.yaml')] });
  const at = (path) => server.open(server.served.auction.replace('/auction/{id}', path));

  const [ann, ben, other] = [at('/auction/7'), at('/auction/7'), at('/auction/8')];
  assert.deepEqual(await ann.ask({ op: 'sit', name: 'Ann' }), { op: 'seated', at: '7', as: 'Ann' });
  assert.deepEqual(await ben.ask({ op: 'sit', name: 'Ben' }), { op: 'seated', at: '7', as: 'Ben' });
  assert.deepEqual(await other.ask({ op: 'sit', name: 'Oz' }), { op: 'seated', at: '8', as: 'Oz' });

  await ann.send({ op: 'bid', cents: 1250 });
  const bid = { op: 'bid', by: 'Ann', euros: 12.5 };
  assert.deepEqual(await ben.next(), bid);
  assert.deepEqual(await ann.some(2), [bid, { op: 'ok' }]);

  assert.deepEqual(await ann.ask({ op: 'bid', cents: 'x' }), { op: 'no', why: 'a bid is a whole number of cents' });
  assert.deepEqual(await ann.ask({ op: 'ask', text: 'hm' }), { op: 'answer', text: 'HM' });
  assert.equal((await ann.ask({ op: 'fly' })).op, 'no');
  assert.deepEqual(await ben.ask({ op: 'ask', text: 'nothing else?' }), { op: 'answer', text: 'NOTHING ELSE?' });
  assert.deepEqual(await other.ask({ op: 'ask', text: 'nor here' }), { op: 'answer', text: 'NOR HERE' });

  const published = await server.fetch(`${server.served.api}/api/history?channel=table:7`);
  assert.deepEqual((await published.json()).events.map((event) => event.data), [{ by: 'Ann', euros: 12.5 }]);
});
