// Command corten-hello is the program inside the image corten/hello: it greets, and with the argument serve it answers HTTP on port 8080.
//
// It is kept tiny on purpose: raw sockets instead of net/http, because every engine carries it.
package main

import (
	"os"
	"strconv"
	"strings"
	"syscall"
)

const greeting = `
Hello from Corten!

This text comes from a container that was made for it a moment ago:
 1. the corten command asked the engine to run the image corten/hello;
 2. the engine carries that image inside itself, so nothing was downloaded;
 3. it laid a fresh writable tree over the image's files, gave the container its own
    processes, network and host name, and started this program as process 1;
 4. what the program writes goes through the container's monitor to your screen and log.

Try next:
 corten run -d --name web -p 8080:8080 corten/hello serve    a web server; then open http://localhost:8080
 corten ps                                                   what is running
 corten logs web                                             what it said
 corten rm -f web                                            stop it and take it away
`

const port = 8080

func main() {
	args := os.Args[1:]
	switch {
	case len(args) == 0:
		say(1, greeting)
	case args[0] == "serve" && len(args) == 1:
		os.Exit(serve())
	default:
		say(2, "corten-hello: unknown argument "+strconv.Quote(strings.Join(args, " "))+"; use none to be greeted, or serve to answer HTTP on port 8080\n")
		os.Exit(2)
	}
}

func say(fd int, s string) {
	for len(s) > 0 {
		n, err := syscall.Write(fd, []byte(s))
		if err == syscall.EINTR || err == syscall.EAGAIN {
			continue
		}
		if err != nil {
			os.Exit(1)
		}
		s = s[n:]
	}
}

// serve listens on every address, IPv6 and IPv4 through one socket; without IPv6 in the kernel, on IPv4.
func serve() int {
	fd, err := listen6()
	if err != nil {
		fd, err = listen4()
	}
	if err != nil {
		say(2, "corten-hello: listen on port "+strconv.Itoa(port)+": "+err.Error()+"\n")
		return 1
	}
	go stop()
	say(1, "corten-hello: serving on port "+strconv.Itoa(port)+"\n")
	for {
		conn, _, err := syscall.Accept4(fd, syscall.SOCK_CLOEXEC)
		if err == syscall.EINTR || err == syscall.ECONNABORTED {
			continue
		}
		if err != nil {
			say(2, "corten-hello: accept: "+err.Error()+"\n")
			return 1
		}
		go answer(conn)
	}
}

func listen6() (int, error) {
	fd, err := syscall.Socket(syscall.AF_INET6, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	_ = syscall.SetsockoptInt(fd, syscall.IPPROTO_IPV6, syscall.IPV6_V6ONLY, 0)
	return start(fd, &syscall.SockaddrInet6{Port: port})
}

func listen4() (int, error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	return start(fd, &syscall.SockaddrInet4{Port: port})
}

func start(fd int, addr syscall.Sockaddr) (int, error) {
	_ = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	if err := syscall.Bind(fd, addr); err != nil {
		syscall.Close(fd)
		return -1, err
	}
	return fd, syscall.Listen(fd, 128)
}

// answer reads the head of one request and writes the page.
func answer(conn int) {
	defer syscall.Close(conn)
	wait := syscall.Timeval{Sec: 10}
	_ = syscall.SetsockoptTimeval(conn, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &wait)
	_ = syscall.SetsockoptTimeval(conn, syscall.SOL_SOCKET, syscall.SO_SNDTIMEO, &wait)
	var head strings.Builder
	buf := make([]byte, 2048)
	for !strings.Contains(head.String(), "\r\n\r\n") {
		n, err := syscall.Read(conn, buf)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || n <= 0 || head.Len() > 16<<10 {
			return
		}
		head.Write(buf[:n])
	}
	line, _, _ := strings.Cut(head.String(), "\r\n")
	method, rest, _ := strings.Cut(line, " ")
	path, _, _ := strings.Cut(rest, " ")
	status, kind, body := page(method, path)
	reply := "HTTP/1.1 " + status + "\r\nServer: corten-hello\r\nContent-Type: " + kind + "; charset=utf-8\r\nContent-Length: " +
		strconv.Itoa(len(body)) + "\r\nConnection: close\r\n\r\n"
	if method != "HEAD" {
		reply += body
	}
	for out := []byte(reply); len(out) > 0; {
		n, err := syscall.Write(conn, out)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return
		}
		out = out[n:]
	}
	_ = syscall.Shutdown(conn, syscall.SHUT_WR)
	for { // let the client read everything before the socket goes
		if n, err := syscall.Read(conn, buf); err != nil && err != syscall.EINTR || n <= 0 {
			return
		}
	}
}

func page(method, path string) (status, kind, body string) {
	host, _ := os.Hostname()
	switch {
	case method != "GET" && method != "HEAD":
		return "405 Method Not Allowed", "text/plain", "only GET and HEAD\n"
	case path != "/" && !strings.HasPrefix(path, "/?"):
		return "404 Not Found", "text/plain", "there is only one page: /\n"
	}
	return "200 OK", "text/html", `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Hello from Corten</title>
<style>body{font:18px/1.5 system-ui,sans-serif;margin:4em auto;max-width:34em;padding:0 1em;color:#222;background:#f7f3ef}h1{color:#a0522d}code{background:#eadfd5;padding:.1em .3em}</style>
</head><body><h1>Hello from Corten!</h1>
<p>This page comes from container <code>` + escape(host) + `</code>.</p>
<p>Take it away with <code>corten rm -f ` + escape(host) + `</code>.</p>
</body></html>
`
}

func escape(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(s)
}
