//go:build !linux

package cli

// canHand: the engine is on another host, or in a virtual machine of this one.
const canHand = false
