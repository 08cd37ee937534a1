// Package systemd tells the service manager about us. It owns nothing, and promises to do nothing where no service manager asked to be told.
package systemd

import (
	"fmt"
	"net"
	"os"
)

// Notify tells systemd (a service of Type=notify) that it serves (READY=1). Without systemd it does nothing.
func Notify(state string) error {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	// net makes an abstract address of a leading @ as systemd means it.
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(state)); err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	return nil
}
