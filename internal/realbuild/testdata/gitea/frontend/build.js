console.log(`const day = ${require('ms')('1d')};`);
