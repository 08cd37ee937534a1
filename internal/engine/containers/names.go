package containers

import (
	"math/rand/v2"
	"strconv"
)

// Made-up names are an adjective and the surname of somebody who made something that lasted.
var (
	adjectives = [...]string{
		"able", "agile", "amber", "ample", "apt", "azure", "bold", "brave", "bright", "brisk", "calm", "candid", "clear", "clever", "cosy", "crisp", "daring", "dapper", "eager", "earnest", "easy",
		"fair", "famed", "fleet", "fond", "frank", "fresh", "gentle", "gifted", "glad", "golden", "grand", "happy", "hardy", "honest", "humble", "jolly", "jovial", "keen", "kind", "lively", "loyal",
		"lucid", "lucky", "mellow", "merry", "mild", "modest", "neat", "nimble", "noble", "patient", "placid", "plucky", "polite", "proud", "quick", "quiet", "ready", "robust", "rustic", "sharp",
		"silent", "sincere", "smart", "snug", "sober", "solid", "spry", "stable", "steady", "stoic", "sturdy", "subtle", "sunny", "swift", "tidy", "trusty", "upbeat", "valiant", "vivid", "warm",
		"wise", "witty", "zealous", "zesty",
	}
	surnames = [...]string{
		"ampere", "arkwright", "babbage", "bardeen", "bell", "benz", "bessemer", "boole", "boyle", "braille", "bramante", "brunel", "carnot", "celsius", "chandra", "clarke", "coulomb", "curie", "daimler",
		"dalton", "darby", "davy", "diesel", "dirac", "eads", "eiffel", "erlang", "euler", "faraday", "fermi", "foucault", "fourier", "franklin", "fulton", "galvani", "gauss", "gramme", "gutenberg",
		"halley", "hamming", "harrison", "heaviside", "henry", "herschel", "hertz", "hollerith", "hooke", "hopper", "huygens", "ibuka", "jacquard", "jenner", "joule", "kelvin", "kepler", "kirchhoff",
		"lamarr", "leibniz", "lovelace", "maillart", "marconi", "maxwell", "meitner", "mendel", "montgolfier", "morse", "napier", "newcomen", "nobel", "noether", "ohm", "otis", "otto", "papin", "pascal",
		"pasteur", "planck", "roebling", "rontgen", "rumford", "savery", "shannon", "siemens", "somerville", "stephenson", "stevin", "telford", "tesla", "torricelli", "trevithick", "turing", "volta",
		"watt", "wheatstone", "whitworth", "wren", "zeppelin", "zuse",
	}
)

// madeUpName gives a name; from the fourth try on it bears a digit, so that a host with thousands of containers still finds one.
func madeUpName(try int) string {
	name := adjectives[rand.IntN(len(adjectives))] + "_" + surnames[rand.IntN(len(surnames))]
	if try > 3 {
		name += strconv.Itoa(rand.IntN(1000))
	}
	return name
}
