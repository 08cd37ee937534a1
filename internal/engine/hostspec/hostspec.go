// Package hostspec writes the OCI configuration of what the engine runs: Docker's defaults (capabilities, seccomp, AppArmor, devices, mounts, hidden paths, limits) and what was
// asked for above them.
//
// It owns nothing. It does not know the life of a container: the services for containers and for the steps of builds give it what they collected, so that both are isolated alike.
// It promises the same configuration for the same request; it reads of the host only what a configuration has to name (device numbers, security modules, limits).
package hostspec
