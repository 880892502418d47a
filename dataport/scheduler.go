package dataport

import (
	"sync/atomic"
	"time"
)

// A Scheduler says which path takes the next frame. Calls come one at a time per session, but one Scheduler may
// serve several sessions, so what it remembers must be safe for concurrent use.
type Scheduler interface {
	// Pick returns an index into paths, or -1 to let the frame wait for one of them. Only paths that are Active and
	// have room are offered; paths is valid until Pick returns.
	Pick(frameBytes int, paths []PathLoad) int
}

// A Scheduler may also say on how many paths at once it wants data, 0 for all. PortConfig.ActivePaths goes before it.
//
//	ActivePaths() int

// PathLoad is what a Scheduler knows of a path.
type PathLoad struct {
	ID           PathID
	UnackedBytes int           // given to the path and not yet reported as arrived there
	Rate         float64       // measured delivery rate, bytes per second; 0: not yet known
	RTT          time.Duration // least round trip of the last seconds
}

// completion is in how many seconds a frame would be delivered. The report that a byte has arrived takes half a round
// trip, so that what is unacknowledged counts, on a busy path, a whole round trip more than what is still to be delivered.
func (l *PathLoad) completion(frameBytes int) float64 {
	rate := l.Rate
	if rate <= 0 {
		rate = assumedRate
	}
	half := l.RTT.Seconds() / 2
	return max(float64(frameBytes)/rate+half, float64(l.UnackedBytes+frameBytes)/rate-half)
}

// assumedRate stands in for the rate of a path that has not delivered anything yet, in bytes per second: high enough that it gets its try.
const assumedRate = 125e6

type leastCompletion struct{}

// LeastCompletion picks the path on which the frame would be delivered first, by unacknowledged bytes ÷ delivery rate and
// RTT/2.
func LeastCompletion() Scheduler { return leastCompletion{} }

func (leastCompletion) Pick(frameBytes int, paths []PathLoad) int {
	best, bestAt := -1, 0.0
	for i := range paths {
		at := paths[i].completion(frameBytes)
		if best < 0 || at < bestAt {
			best, bestAt = i, at
		}
	}
	return best
}

type roundRobin struct{ last atomic.Uint32 }

// RoundRobin takes the paths in turn, whatever their speed.
func RoundRobin() Scheduler { return &roundRobin{} }

func (r *roundRobin) Pick(_ int, paths []PathLoad) int {
	// The next higher path id after the last one served: a path without room is skipped, not waited for.
	last := PathID(r.last.Load())
	next, lowest := -1, 0
	for i := range paths {
		if paths[i].ID < paths[lowest].ID {
			lowest = i
		}
		if paths[i].ID > last && (next < 0 || paths[i].ID < paths[next].ID) {
			next = i
		}
	}
	if next < 0 {
		next = lowest
	}
	r.last.Store(uint32(paths[next].ID))
	return next
}

type activeBackup struct{}

// ActiveBackup sends on one path; the others stand by. It begins with the target's first address, unless
// another one is up much sooner, and stays where it is for as long as that works.
func ActiveBackup() Scheduler { return activeBackup{} }

func (activeBackup) ActivePaths() int { return 1 }

func (activeBackup) Pick(_ int, paths []PathLoad) int {
	first := 0 // there is one, unless PortConfig.ActivePaths says otherwise
	for i := range paths {
		if paths[i].ID < paths[first].ID {
			first = i
		}
	}
	return first
}
