package server

import (
	"strconv"
	"strings"
)

// span is a part of a blob, or all of it.
type span struct {
	start, length int64
	partial       bool
}

// parseRange reads a Range header (RFC 9110 section 14) for something of that size. One that is not understood, or asks for several parts, is ignored
// as the RFC allows: all is sent. ok is false when nothing of it lies inside, or it ends before it begins (416).
func parseRange(header string, size int64) (s span, ok bool) {
	all := span{length: size}
	set, found := strings.CutPrefix(header, "bytes=")
	if !found || strings.Contains(set, ",") {
		return all, true
	}
	first, last, found := strings.Cut(strings.Trim(set, " \t"), "-")
	if !found {
		return all, true
	}
	if first == "" { // the last n bytes
		n, valid := number(last)
		if !valid {
			return all, true
		}
		if n == 0 || size == 0 {
			return span{}, false
		}
		n = min(n, size)
		return span{start: size - n, length: n, partial: true}, true
	}
	start, valid := number(first)
	if !valid {
		return all, true
	}
	end := size - 1
	if last != "" {
		n, valid := number(last)
		if !valid {
			return all, true
		}
		if n < start {
			return span{}, false
		}
		end = min(end, n)
	}
	if start >= size {
		return span{}, false
	}
	return span{start: start, length: end - start + 1, partial: true}, true
}

// parseContentRange reads what a chunk says of itself: "<first>-<last>", both inclusive. Some clients write "bytes <first>-<last>/<total>".
func parseContentRange(header string) (start, length int64, ok bool) {
	header = strings.TrimPrefix(header, "bytes ")
	header, _, _ = strings.Cut(header, "/")
	first, last, found := strings.Cut(header, "-")
	start, ok1 := number(first)
	end, ok2 := number(last)
	if !found || !ok1 || !ok2 || end < start || end-start == 1<<63-1 {
		return 0, 0, false
	}
	return start, end - start + 1, true
}

// number reads digits only, without the signs that strconv would take.
func number(s string) (int64, bool) {
	if s == "" || len(s) > 19 || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// endOfRange is what a Range header says of an upload: the position of its last byte. An empty one has none; "0-0" is what clients know.
func endOfRange(size int64) string { return "0-" + strconv.FormatInt(max(size-1, 0), 10) }
