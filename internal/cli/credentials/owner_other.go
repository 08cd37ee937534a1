//go:build !unix

package credentials

func keepOwner(string, string) {}
