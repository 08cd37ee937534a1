// Package script runs the command scripts in script/*.txt against a private engine: one script per verb, each to be
// read as a short manual.
//
// It owns that engine (roots, bridge, nftables table and socket of its own) and the busybox image that the scripts use.
// It promises that nothing of it is left when the tests have ended, and that a host which cannot run containers skips
// with a plain word. CORTEN_BIN_DIR names a folder with ready programs; without it they are built.
//
// Besides testscript's own commands a script may use:
//
//	corten ARG...           run the command line; it must succeed (with ! it must fail)
//	exits CODE ARG...       run the command line; it must end with this code
//	retry ARG...            run the command line until it succeeds, for at most five seconds
//	until TEXT ARG...       run the command line until its output contains the text, for at most five seconds
//
// $PLUGINS is the engine's folder of plugins, with a volume plugin "demo" and a network plugin "lab" in it.
//
// $REGISTRY is the address of a registry for everybody; that at $PRIVATE is for the user "me" with the password "s3cret".
package script
