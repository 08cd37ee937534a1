package containers

import (
	"strings"
	"testing"
	"time"

	"corten.dev/corten/internal/container"
)

// `ps -n 5` went through the records of all containers, and sorted them: where 1,000 ran it took half as long again as where none did. So the table keeps them in order, also those that
// come in any order from the disk, and those that were made in the same moment.
func TestTableKeepsOrder(t *testing.T) {
	tab := table{byID: map[string]*live{}, byName: map[string]*live{}}
	all := map[string]*live{}
	for i, id := range []string{"c", "a", "e", "b", "d"} {
		at := time.Unix(int64(id[0]), 0)
		if i > 2 {
			at = time.Unix('b', 0) // b and d
		}
		all[id] = newLive(container.Record{ID: id, Name: "/" + id, Created: at})
		if err := tab.reserve(id, all[id]); err != nil {
			t.Fatal(err)
		}
		tab.add(all[id])
	}
	check := func(want string) {
		t.Helper()
		got := ""
		for _, ctr := range tab.all() {
			got += ctr.id
		}
		if got != want || len(tab.byID) != len(want) {
			t.Errorf("%s of %d, not %s", got, len(tab.byID), want)
		}
	}
	check("abdce")
	for i, id := range strings.Split("dade", "") { // one of them a second time
		tab.drop(all[id])
		check([]string{"abce", "bce", "bce", "bc"}[i])
	}
	before := tab.all()
	tab.drop(all["b"])
	if check("c"); before[0] != all["b"] || before[1] != all["c"] {
		t.Error("a list that was handed out has changed")
	}
}
