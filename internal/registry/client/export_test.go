package client

// Journey is for the tests outside of the package.
var Journey = journey
