package main

import "strings"

// paint colours words on a terminal that wants it, and leaves them alone
// elsewhere.
type paint bool

func (p paint) wrap(code, s string) string {
	if !p || s == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (p paint) bold(s string) string { return p.wrap("1", s) }
func (p paint) dim(s string) string  { return p.wrap("2", s) }

// These have codes of one length: a column of them stays a column.
func (p paint) plain(s string) string { return p.wrap("39", s) }
func (p paint) good(s string) string  { return p.wrap("32", s) }
func (p paint) warn(s string) string  { return p.wrap("33", s) }
func (p paint) bad(s string) string   { return p.wrap("31", s) }

// state colours the name of a state by what it means to the operator.
func (p paint) state(s string) string {
	switch s {
	case "in sync", "in-sync", "streaming", "active", "standby", "serving", "following", "connected":
		return p.good(s)
	case "down", "refused", "failed", "diverged", "frozen", "fenced", "lost":
		return p.bad(s)
	}
	return p.warn(s)
}

// bar draws share (0 to 1) in width columns.
func bar(share float64, width int) string {
	full := min(max(int(share*float64(width)+0.5), 0), width)
	return strings.Repeat("█", full) + strings.Repeat("░", width-full)
}
