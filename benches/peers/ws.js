// The protocol of benches/routes.yaml on npm `ws`, written as one writes it: a set of sockets for each channel.

import { WebSocketServer } from 'ws';

const channels = new Map();

const server = new WebSocketServer({ host: '127.0.0.1', port: 0 }, () => {
  console.log(`ws://127.0.0.1:${server.address().port}/`);
});

server.on('connection', (socket) => {
  const joined = new Set();

  socket.on('message', (text) => {
    const message = JSON.parse(text);
    if (message.op === 'sub') {
      if (!channels.has(message.ch)) channels.set(message.ch, new Set());
      channels.get(message.ch).add(socket);
      joined.add(message.ch);
      socket.send(JSON.stringify({ op: 'ok' }));
    } else if (message.op === 'pub') {
      const event = JSON.stringify({ ch: message.ch, data: message.data });
      for (const member of channels.get(message.ch) ?? []) member.send(event);
    } else if (message.op === 'echo') {
      socket.send(JSON.stringify({ op: 'echo', data: message.data }));
    }
  });

  socket.on('close', () => {
    for (const name of joined) {
      const members = channels.get(name);
      members.delete(socket);
      if (members.size === 0) channels.delete(name);
    }
  });
});
