// Command hello says something that a module knows.
package main

import (
	"fmt"

	"rsc.io/quote"
)

var version = "none"

func main() { fmt.Println(version, quote.Glass()) }
