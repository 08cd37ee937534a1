const assert = require('assert'), ms = require('ms'), page = require('./index');
assert.match(page(), /To-do &gt; done.*test as 1000/);
assert.strictEqual(ms('2 days'), 172800000);
console.log('tests passed');
