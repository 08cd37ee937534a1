// Command exporter tells its numbers to whoever connects.
package main

import (
	"fmt"
	"net"
	"os"
	"runtime"
)

func main() {
	l, err := net.Listen("tcp", ":9100")
	for err == nil {
		var c net.Conn
		if c, err = l.Accept(); err == nil {
			_, _ = fmt.Fprintf(c, "HTTP/1.0 200 OK\r\n\r\nup{arch=%q,uid=\"%d\"} 1\n", runtime.GOARCH, os.Getuid())
			_ = c.Close()
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
