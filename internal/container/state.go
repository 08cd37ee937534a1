package container

import (
	"time"

	"corten.dev/corten/internal/errs"
)

// Status is what a container is doing. The names are Docker's, plus Starting and Stopping, which the API shows as what they come from.
type Status string

const (
	Created    Status = "created"
	Starting   Status = "starting"
	Running    Status = "running"
	Paused     Status = "paused"
	Restarting Status = "restarting" // between two runs, waiting for its back-off
	Exited     Status = "exited"
	Removing   Status = "removing"
	Dead       Status = "dead" // removal failed half way; only rm is legal
)

// State is the part of a record that changes while it runs.
type State struct {
	Status     Status
	PID        int
	ExitCode   int
	Error      string
	OOMKilled  bool
	StartedAt  time.Time
	FinishedAt time.Time
	// Health is what the probes of this run found, and of the last one once it ended; nil where nothing is checked.
	Health *Health `json:",omitempty"`
	// Boot is the kernel's boot id when the container was started: after a reboot Running is not believed.
	Boot string
}

// moves lists every legal change of status. Everything else is refused.
//
//	created ──▶ starting ──▶ running ◀──▶ paused
//	               │            │            │
//	               ▼            ▼            ▼
//	            exited ◀─────(exit)──────────┘
//	               │  ▲ ▲
//	               │  │ └── restarting ◀── (policy) ── running
//	               ▼  starting ◀──────┘
//	            removing ──▶ (gone) or dead
var moves = map[Status][]Status{
	Created:    {Starting, Removing, Exited},
	Starting:   {Running, Exited, Created, Restarting},
	Running:    {Paused, Exited, Restarting},
	Paused:     {Running, Exited, Restarting},
	Restarting: {Starting, Exited, Removing},
	Exited:     {Starting, Removing},
	Removing:   {Dead, Exited, Created},
	Dead:       {Removing},
}

// Move checks that a container may go from one status to another; errs.Conflict when it may not.
func Move(from, to Status) error {
	for _, s := range moves[from] {
		if s == to {
			return nil
		}
	}
	return errs.New(errs.Conflict, "a container that is %s cannot become %s", from, to)
}

// Live tells whether a process exists (running or paused).
func (s Status) Live() bool { return s == Running || s == Paused }
