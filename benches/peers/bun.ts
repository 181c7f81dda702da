// The protocol of benches/routes.yaml on Bun, written as one writes it: its own topics are the channels.

const server = Bun.serve({
  hostname: '127.0.0.1',
  port: 0,
  fetch(request, server) {
    if (server.upgrade(request)) return;
    return new Response('this speaks WebSocket', { status: 426 });
  },
  websocket: {
    message(socket, text) {
      const message = JSON.parse(text as string);
      if (message.op === 'sub') {
        socket.subscribe(message.ch);
        socket.send(JSON.stringify({ op: 'ok' }));
      } else if (message.op === 'pub') {
        server.publish(message.ch, JSON.stringify({ ch: message.ch, data: message.data }));
      } else if (message.op === 'echo') {
        socket.send(JSON.stringify({ op: 'echo', data: message.data }));
      }
    },
  },
});

console.log(`ws://127.0.0.1:${server.port}/`);
