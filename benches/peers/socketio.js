// The protocol of benches/routes.yaml on `socket.io`, in its own terms: a room for each channel, acknowledgements for replies.

import { createServer } from 'node:http';
import { Server } from 'socket.io';

const http = createServer();
const io = new Server(http, { transports: ['websocket'] });

io.on('connection', (socket) => {
  socket.on('sub', ({ ch }, reply) => {
    socket.join(ch);
    reply();
  });
  socket.on('pub', ({ ch, data }) => io.to(ch).emit('event', { ch, data }));
  socket.on('echo', ({ data }, reply) => reply({ data }));
});

http.listen(0, '127.0.0.1', () => {
  console.log(`ws://127.0.0.1:${http.address().port}/socket.io/?EIO=4&transport=websocket`);
});
