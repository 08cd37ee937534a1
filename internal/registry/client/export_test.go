package client

// These are for the tests outside of the package.
var Journey = journey

var Resumes = resumes

const Bcrypted = bcrypted
