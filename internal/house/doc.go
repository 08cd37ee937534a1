// Package house holds the rules that keep Corten's source in its rooms, as tests on our own source.
//
// It owns the import table (imports_test.go) and the house rules (rules_test.go). It promises that a rule which no longer
// matches anything fails too, so that the table never goes stale.
package house
