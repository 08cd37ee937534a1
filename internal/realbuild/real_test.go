package realbuild

import (
	"slices"
	"strings"
	"testing"
)

// project is an image that is built for real, run and spoken to.
type project struct {
	name  string   // its folder in testdata
	needs []string // images that are built before
	args  []string
	check func(t *testing.T, s *suite, image string)
}

// TestReal builds everything on one engine, two projects at a time. What takes longest comes first.
func TestReal(t *testing.T) {
	s := start(t)
	t.Run("projects", func(t *testing.T) {
		for _, p := range slices.Concat(labs(), caches(), databases(), wellKnown()) {
			t.Run(p.name, func(t *testing.T) {
				t.Parallel()
				if err := s.need(p.needs...); err != nil {
					t.Fatal(err)
				}
				image := "real/" + p.name
				log, err := s.twice("testdata/"+p.name, image, p.args...)
				if err != nil {
					t.Fatal(err)
				}
				p.check(t, s, image)
				if t.Failed() {
					t.Logf("the build said:\n%s", ended(log))
				}
			})
		}
	})
	t.Logf("built:\n%s", strings.Join(s.times, "\n"))
}

// labs are the two Dockerfiles of the walk-through that newcomers are given.
func labs() []project {
	return []project{
		{name: "lab-ubuntu", check: func(t *testing.T, s *suite, image string) {
			c := s.run(t, "-p", "127.0.0.1::3000", image)
			c.fetch("3000", "<h1>salt &amp; pepper</h1>")
			c.exec("/", "cat", "/var/log/nodeapp/requests.log")
		}},
		{name: "lab-node", needs: []string{"node:latest"}, check: func(t *testing.T, s *suite, image string) {
			s.config(t, image, "{{json .Config.Cmd}} {{json .Config.ExposedPorts}}", `["npm","start"] {"4200/tcp":{}}`)
			c := s.run(t, "-p", "127.0.0.1::4200", image)
			c.fetch("4200", "<app-root>&lt;client&gt;</app-root>")
		}},
	}
}

// databases are Debian's redis, nginx and PostgreSQL in the manner of the official images.
func databases() []project {
	return []project{
		{name: "postgres-app", needs: []string{"postgres:latest"}, check: checkPostgres},
		{name: "redis", check: func(t *testing.T, s *suite, image string) {
			c := s.run(t, "-p", "127.0.0.1::6379", image)
			c.speak("6379", "PING\r\n", "+PONG\r\n")
			c.speak("6379", "SET word kept\r\n", "+OK\r\n")
			c.exec("redis", "stat", "-c", "%U", "/data", "/proc/1")
			c.stop("0")
			s.corten(t, "start", c.id)
			c.speak("6379", "GET word\r\n", "$4\r\nkept\r\n")
		}},
		{name: "nginx", check: func(t *testing.T, s *suite, image string) {
			s.config(t, image, "{{.Config.StopSignal}} {{.Config.Labels.maintainer}}", "SIGQUIT Somebody <somebody@example.org>")
			if env := s.corten(t, "image", "inspect", "-f", "{{json .Config.Env}}", image); !strings.Contains(env, `"FULL=nginx-light~2"`) { // one ENV line sees the variables of those before it
				t.Errorf("environment: %s", env)
			}
			c := s.run(t, "-p", "127.0.0.1::80", "-e", "PAGE=the first", image)
			if page := c.fetch("80", "<h1>a static site</h1>").Get("X-Page"); page != "the first" {
				t.Errorf("the template was not filled: %q", page)
			}
			c.until("the log", c.logs, `"GET / HTTP/1.1" 200`)
			c.stop("0")
		}},
	}
}

func checkPostgres(t *testing.T, s *suite, image string) {
	s.config(t, image, "{{.Config.StopSignal}} {{json .Config.Volumes}} {{json .Config.Cmd}}", `SIGINT {"/var/lib/postgresql/data":{}} ["postgres"]`)
	if out, err := s.e.Try("run", "--rm", image); err == nil || !strings.Contains(err.Error(), "superuser password is not specified") {
		t.Errorf("without a password: %q, %v", out, err)
	}
	c := s.run(t, "-e", "POSTGRES_PASSWORD=secret", "-e", "PGPASSWORD=secret", image)
	ask := func(query, want string) {
		t.Helper()
		c.exec(want, "psql", "-h", "127.0.0.1", "-U", "postgres", "-tAc", query) // by network: the first server, which only fills the database, has none
	}
	ask("SELECT 1", "1")
	ask("SELECT string_agg(name, '+' ORDER BY name) FROM users", "alice+bob")
	c.exec("440 postgres", "stat", "-c", "%a %U", "/docker-entrypoint-initdb.d/1-schema.sql")
	ask("INSERT INTO users VALUES ('carol')", "INSERT 0 1")
	c.stop("0")
	s.corten(t, "start", c.id)
	ask("SELECT count(*) FROM users", "3")
}
