const ms = require('ms');
require('http').createServer((req, res) => res.end(`${ms('1h')} ${process.env.NODE_ENV}\n`)).listen(8080);
