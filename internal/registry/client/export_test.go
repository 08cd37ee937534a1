package client

// Journey and Bcrypted are for the tests outside of the package.
var Journey = journey

const Bcrypted = bcrypted
