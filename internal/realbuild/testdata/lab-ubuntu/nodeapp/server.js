const http = require('http'), fs = require('fs'), escape = require('escape-html');
http.createServer((req, res) => {
  fs.appendFileSync('/var/log/nodeapp/requests.log', req.url + '\n');
  res.end('<h1>' + escape('salt & pepper') + '</h1>\n');
}).listen(3000);
