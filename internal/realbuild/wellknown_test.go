package realbuild

import (
	"strings"
	"testing"
)

// wellKnown are ten Dockerfiles in the manner of well-known projects. Only the image that they stand on is another one.
func wellKnown() []project {
	return []project{
		{name: "getting-started", needs: []string{"node:latest"}, check: checkGettingStarted},
		{name: "onbuild-app", needs: []string{"node:onbuild"}, args: []string{"--build-arg", "NODE_ENV=production"}, check: func(t *testing.T, s *suite, image string) {
			s.config(t, image, "{{json .Config.OnBuild}}", "null")
			s.run(t, "-p", "127.0.0.1::8080", image).fetch("8080", "3600000 production")
		}},
		{name: "gitea", needs: []string{"golang:latest", "node:latest"}, check: checkGitea},
		{name: "exporter", needs: []string{"golang:latest"}, check: func(t *testing.T, s *suite, image string) {
			s.config(t, image, "{{.Config.User}} {{.Config.Labels.maintainer}}", "65534 The Authors <authors@example.org>")
			arch := s.corten(t, "image", "inspect", "-f", "{{.Architecture}}", image)
			s.run(t, "-p", "127.0.0.1::9100", image).fetch("9100", `up{arch="`+arch+`",uid="65534"} 1`)
		}},
		{name: "httpd", check: func(t *testing.T, s *suite, image string) {
			s.config(t, image, "{{.Config.StopSignal}} {{json .Config.Shell}}", `SIGWINCH ["/bin/bash","-euxo","pipefail","-c"]`)
			c := s.run(t, "-p", "127.0.0.1::80", image)
			c.fetch("80", "It works!")
			c.until("the log", c.logs, `"GET / HTTP/1.1" 200`)
			c.stop("0")
		}},
		{name: "flask", check: func(t *testing.T, s *suite, image string) {
			s.run(t, "-p", "127.0.0.1::8000", image).fetch("8000", `{"hello":"flask","uid":10001}`)
		}},
		{name: "sinatra", check: func(t *testing.T, s *suite, image string) {
			c := s.run(t, "-p", "127.0.0.1::4567", image)
			c.fetch("4567", "a front end in Ruby, production")
			c.exec("yes", "cat", "tmp/visited")
		}},
		{name: "sshd", check: func(t *testing.T, s *suite, image string) {
			c := s.run(t, "-p", "127.0.0.1::22", image)
			c.speak("22", "", "SSH-2.0-OpenSSH")
			c.exec("now", "ssh", "-o", "StrictHostKeyChecking=no", "127.0.0.1", "bash", "-lc", "'echo $VISIBLE'")
		}},
		{name: "memcached", check: func(t *testing.T, s *suite, image string) {
			s.config(t, image, "{{.Config.User}} {{json .Config.Entrypoint}}", `memcache ["docker-entrypoint.sh"]`)
			c := s.run(t, "-p", "127.0.0.1::11211", image, "-m", "32", "-v")
			c.speak("11211", "set k 0 0 5\r\nvalue\r\n", "STORED")
			c.speak("11211", "get k\r\n", "VALUE k 0 5\r\nvalue\r\nEND")
			if out, err := s.e.Try("exec", c.id, "file", "--version"); err == nil { // it was purged in the step that installed it
				t.Errorf("still there: %q", out)
			}
		}},
		{name: "haproxy", check: func(t *testing.T, s *suite, image string) {
			c := s.run(t, "-p", "127.0.0.1::8080", image)
			c.fetch("8080", "balanced")
			c.exec("640 root haproxy", "stat", "-c", "%a %U %G", "/usr/local/etc/haproxy/haproxy.cfg")
			c.stop("0")
		}},
	}
}

func checkGettingStarted(t *testing.T, s *suite, image string) {
	c := s.run(t, "-p", "127.0.0.1::3000", image)
	c.fetch("3000", "<h1>To-do &gt; done</h1> production as 1000")
	s.config(t, image, "{{with .Config.Healthcheck}}{{index .Test 0}} {{json .Interval}} {{json .Timeout}} {{json .StartPeriod}} {{json .StartInterval}} {{json .Retries}}{{end}}",
		"CMD-SHELL 1000000000 10000000000 30000000000 250000000 5")
	probe := s.corten(t, "image", "inspect", "-f", "{{index .Config.Healthcheck.Test 1}}", image)
	c.exec("healthy", "sh", "-c", "("+probe+") && echo healthy")
	if modules := s.corten(t, "exec", c.id, "ls", "node_modules"); modules != "escape-html" {
		t.Errorf("modules: %q", modules)
	}
	log, err := s.twice("testdata/getting-started", image+":test", "--target", "test")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log, "tests passed") {
		t.Errorf("the tests did not run:\n%s", log)
	}
	if got := s.corten(t, "run", "--rm", image+":test", "node", "-p", "require('ms')('1s')"); got != "1000" {
		t.Errorf("the stage for development has no modules for it: %q", got)
	}
}

func checkGitea(t *testing.T, s *suite, image string) {
	const want = "development [bindata timetzdata sqlite sqlite_unlock_notify] /data/gitea 1000 [web]\nconst day = 86400000;"
	if got := s.corten(t, "run", "--rm", image); strings.TrimSpace(got) != want {
		t.Errorf("it says %q", got)
	}
	if got := s.corten(t, "run", "--rm", "--entrypoint", "stat", image, "-c", "%a %U:%G", "/app/gitea/gitea", "/usr/bin/entrypoint"); got != "755 root:git\n755 root:root" {
		t.Errorf("modes and owners: %q", got)
	}
	if log, err := s.twice("testdata/gitea", image+":env", "--target", "build-env", "--build-arg", "GITEA_VERSION=1.2.3", "--build-arg", "TAGS=none"); err != nil {
		t.Errorf("%v\n%s", err, log)
	}
	if got := s.corten(t, "run", "--rm", image+":env", "sh", "-c", "./gitea; ls /src"); !strings.HasPrefix(got, "1.2.3 [bindata timetzdata none]") || strings.Contains(got, "secret") {
		t.Errorf("it says %q", got)
	}
}
