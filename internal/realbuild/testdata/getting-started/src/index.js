const escape = require('escape-html');
const page = () => `<h1>${escape('To-do > done')}</h1> ${process.env.NODE_ENV} as ${process.getuid()}\n`;
module.exports = page;
if (require.main === module) require('http').createServer((req, res) => res.end(page())).listen(3000);
