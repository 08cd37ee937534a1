package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"

	"github.com/moby/moby/api/types/system"
	"github.com/spf13/pflag"

	"corten.dev/corten/internal/cli/engineapi"
	"corten.dev/corten/internal/cli/show"
	"corten.dev/corten/internal/version"
)

// clientVersion is what version says about ourselves.
type clientVersion struct {
	Version           string
	APIVersion        string `json:"ApiVersion"`
	DefaultAPIVersion string
	GitCommit         string
	GoVersion         string
	Os                string
	Arch              string
	BuildTime         string
	Context           string
}

// versions is what version --format sees. Server is nil when there is none.
type versions struct {
	Client clientVersion
	Server *system.VersionResponse
}

func newVersion() *verb {
	var format string
	return &verb{
		use: "[OPTIONS]", short: "Show the versions of client and engine", long: "Shows the versions of this program and of the engine it talks to.",
		example: "corten version\ncorten version --format '{{.Server.Version}}'",
		flags: func(f *pflag.FlagSet) {
			f.StringVarP(&format, "format", "f", "", "how to print: json or a Go template")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			if format != "" && format != "json" {
				if _, err := show.Parse(format); err != nil {
					return err
				}
			}
			api, err := a.engine()
			if err != nil {
				return err
			}
			v := versions{}
			server := &system.VersionResponse{}
			err = api.Get(ctx, "/version", nil, server)
			if err == nil {
				v.Server = server
			}
			v.Client = clientVersion{Version: version.Version, APIVersion: api.Version(), DefaultAPIVersion: engineapi.Newest, GitCommit: version.Commit,
				GoVersion: runtime.Version(), Os: runtime.GOOS, Arch: runtime.GOARCH, Context: a.ep.Context}
			var perr error
			if format != "" {
				perr = show.Text(a.Out, format, v)
			} else {
				perr = show.Tabs(a.Out, 20, 1, versionLines(v))
			}
			return errors.Join(perr, err)
		},
	}
}

func versionLines(v versions) []string {
	c := v.Client
	out := []string{"Client:", " Version:\t" + c.Version}
	apiLine := " API version:\t" + c.APIVersion
	if c.APIVersion != c.DefaultAPIVersion {
		apiLine += " (downgraded from " + c.DefaultAPIVersion + ")"
	}
	out = append(out, apiLine, " Go version:\t"+c.GoVersion, " Git commit:\t"+c.GitCommit, " OS/Arch:\t"+c.Os+"/"+c.Arch, " Context:\t"+c.Context)
	if v.Server == nil {
		return out
	}
	head := "Server:"
	if v.Server.Platform.Name != "" {
		head += " " + v.Server.Platform.Name
	}
	out = append(out, "", head)
	for _, comp := range v.Server.Components {
		out = append(out, " "+comp.Name+":", "  Version:\t"+comp.Version)
		d := comp.Details
		if comp.Name != "Engine" {
			out = append(out, "  GitCommit:\t"+d["GitCommit"])
			continue
		}
		built := d["BuildTime"]
		if t, err := time.Parse(time.RFC3339Nano, built); err == nil {
			built = t.Format(time.ANSIC)
		}
		out = append(out, "  API version:\t"+d["ApiVersion"]+" (minimum version "+d["MinAPIVersion"]+")", "  Go version:\t"+d["GoVersion"],
			"  Git commit:\t"+d["GitCommit"], "  Built:\t"+built, "  OS/Arch:\t"+d["Os"]+"/"+d["Arch"], "  Experimental:\t"+d["Experimental"])
	}
	return out
}

// infoView is what info --format sees.
type infoView struct {
	*system.Info
	ServerErrors []string `json:",omitempty"`
	ClientInfo   struct {
		Debug   bool
		Version string
		Context string
	}
}

func newInfo() *verb {
	var format string
	return &verb{
		use: "[OPTIONS]", short: "Show facts about the engine and its host", long: "Shows how many containers and images there are, how the engine is set up and what its host has.",
		example: "corten info\ncorten info --format '{{.Driver}}'",
		flags: func(f *pflag.FlagSet) {
			f.StringVarP(&format, "format", "f", "", "how to print: json or a Go template")
		},
		run: func(ctx context.Context, a *app, args []string) error {
			api, err := a.engine()
			if err != nil {
				return err
			}
			v := infoView{}
			v.ClientInfo.Debug, v.ClientInfo.Version, v.ClientInfo.Context = a.global.debug, version.Version, a.ep.Context
			var info system.Info
			ierr := api.Get(ctx, "/info", nil, &info)
			if ierr != nil {
				v.ServerErrors = []string{a.explain(ierr).Error()}
			}
			if format != "" {
				v.Info = &info
				return errors.Join(show.Text(a.Out, format, v), ierr)
			}
			fmt.Fprintf(a.Out, "Client:\n Version:    %s\n Context:    %s\n Debug Mode: %t\n\nServer:\n", version.Version, a.ep.Context, a.global.debug)
			if ierr != nil {
				return ierr
			}
			printInfo(a.Out, &info)
			for _, w := range info.Warnings {
				fmt.Fprintln(a.Err, w)
			}
			return nil
		},
	}
}

// newDialStdio is the far end of an ssh connection.
func newDialStdio() *verb {
	return &verb{
		short: "Join standard input and output with the engine", long: "Copies standard input to the engine's socket and its answers to standard output. Clients run it through ssh.",
		example: "ssh host corten system dial-stdio",
		run: func(ctx context.Context, a *app, args []string) error {
			if _, err := a.engine(); err != nil {
				return err
			}
			nc, err := a.dial(ctx)
			if err != nil {
				return err
			}
			defer nc.Close()
			in := make(chan error, 1)
			go func() {
				_, err := io.Copy(nc, a.In)
				if cw, ok := nc.(interface{ CloseWrite() error }); ok {
					cw.CloseWrite()
				}
				in <- err
			}()
			_, err = io.Copy(a.Out, nc)
			if err != nil {
				return fmt.Errorf("copy from engine: %w", err)
			}
			select {
			case err = <-in:
			default: // the engine has closed: what we still could send has no reader
			}
			return err
		},
	}
}

func yes(on bool) string { return fmt.Sprintf("%t", on) }

func words(s []string) string { return strings.Join(s, " ") }
