// node:http on the listener of fd 0. With the argument "close" it ends well on SIGTERM, else at once.

const fs = require('node:fs');
const http = require('node:http');

const fd = fs.openSync(process.env.POSTED_LOG, 'a');
const log = (what, name) => fs.writeSync(fd, `${what} ${name}\n`);

const server = http.createServer((request, response) => {
  const pieces = [];
  request.on('data', (piece) => pieces.push(piece));
  request.on('end', () => {
    const [name, before, between] = Buffer.concat(pieces).toString().split(' ');
    const middle = name.length >> 1;
    log('begun', name);
    setTimeout(() => {
      response.writeHead(200, { 'Content-Type': 'text/plain' });
      response.write(name.slice(0, middle));
      setTimeout(() => {
        log('done', name);
        response.end(`${name.slice(middle)}\n`);
      }, Number(between));
    }, Number(before));
  });
});
server.keepAliveTimeout = 75000;
if (process.argv[2] === 'close') {
  process.on('SIGTERM', () => server.close(() => process.exit(0)));
}
server.listen({ fd: 0 });
