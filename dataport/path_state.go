package dataport

import "fmt"

// PathState is where a path is in its life.
//
//	        start          connected           authenticated
//	 Idle ────────► Dialing ────────► Authenticating ────────► Active ◄──────┐ heard
//	                 ▲   │                  │                   │  │ silent  │
//	                 │   │ failed           │ failed            │  └──────► Suspect
//	           retry │   ▼                  ▼                   │ lost        │ lost
//	              Backoff ◄──── Down ◄──────────────────────────┴─────────────┘
//	                      pause
//
//	any state ── stop ──► Idle
//
// An inbound path begins in Authenticating and ends in Down: the other side dials again.
// Nothing in this file knows a clock, a connection or a goroutine.
type PathState uint8

// The states of a path.
const (
	PathIdle PathState = iota
	PathDialing
	PathAuthenticating
	PathActive
	PathSuspected
	PathLost
	PathBackoff
)

var pathStateNames = [...]string{"idle", "dialing", "authenticating", "active", "suspect", "down", "backoff"}

func (s PathState) String() string {
	if int(s) >= len(pathStateNames) {
		return fmt.Sprintf("PathState(%d)", uint8(s))
	}
	return pathStateNames[s]
}

type pathInput uint8

const (
	pathStart pathInput = iota
	pathConnected
	pathAuthenticated
	pathSilent
	pathHeard
	pathFailed
	pathPause
	pathRetry
	pathStop
)

// next returns the state after in, and whether in changes anything in this state. An input that a state does not know leaves it as it is.
func (s PathState) next(in pathInput) (PathState, bool) {
	switch {
	case in == pathStop:
		return PathIdle, s != PathIdle
	case s == PathIdle && in == pathStart, s == PathBackoff && in == pathRetry:
		return PathDialing, true
	case s == PathDialing && in == pathConnected:
		return PathAuthenticating, true
	case s == PathAuthenticating && in == pathAuthenticated, s == PathSuspected && in == pathHeard:
		return PathActive, true
	case s == PathActive && in == pathSilent:
		return PathSuspected, true
	case in == pathFailed && s != PathIdle && s != PathBackoff && s != PathLost:
		return PathLost, true
	case s == PathLost && in == pathPause:
		return PathBackoff, true
	}
	return s, false
}
