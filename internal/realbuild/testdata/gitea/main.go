// Command gitea prints what it was built of.
package main

import (
	_ "embed"
	"fmt"
	"os"
)

//go:embed public/index.js
var index string

var version, tags string

func main() {
	fmt.Printf("%s [%s] %s %d %s\n%s", version, tags, os.Getenv("GITEA_CUSTOM"), os.Getuid(), os.Args[1:], index)
}
