const escape = require('escape-html');
require('http').createServer((req, res) => res.end('<app-root>' + escape('<client>') + '</app-root>\n')).listen(4200, '0.0.0.0');
