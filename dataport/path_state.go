package dataport

import "fmt"

// PathState is where a path is in its life.
//
//	        start           connected            authenticated            activate
//	 Idle ────────► Dialing ─────────► Authenticating ─────────► Standby ──────────► Active
//	                 ▲   │              ▲   │                     ▲ │  ▲    rest      │ │ │
//	           retry │   │ failed       │   │ failed        heard │ │  └─────────────┘ │ │
//	                 │   ▼              │   │              ┌──────┘ │ silent           │ │ drain
//	          Backoff ◄──── Down ◄──────┼───┘           Suspect ◄───┴──────────────────┘ │ (also Standby, Suspect)
//	           ▲     pause  │   ▲       │ connected        │                             ▼
//	           │            │   └───────┼──────────────────┴── failed ───────────────Draining
//	     pause │    reserve ▼           │                    (also Standby, Active)
//	           └──────── Reserved ──────┘
//	                        │ retry ► Dialing
//
//	any state ── stop ──► Idle
//
// Every authenticated path begins in Standby; elect (election.go) says at once whether it carries data.
// Reserved: it was up in the session that lives; its place, id and counters are kept. The side that dials tries again
// from there; on the accepting side an inbound path rests there until the peer joins with it again (connected), removes
// it, or the session ends. An inbound path begins in Authenticating.
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
	PathStandby  // well, and without data while enough others are active
	PathReserved // lost; its place is kept while it is being re-established
	PathDraining // being removed: gets nothing more, and is closed when everything on it is acknowledged
)

var pathStateNames = [...]string{
	"idle", "dialing", "authenticating", "active", "suspect", "down", "backoff", "standby", "reserved", "draining",
}

func (s PathState) String() string {
	if int(s) >= len(pathStateNames) {
		return fmt.Sprintf("PathState(%d)", uint8(s))
	}
	return pathStateNames[s]
}

// well reports whether the path could carry new data.
func (s PathState) well() bool { return s == PathActive || s == PathStandby }

// live reports whether the path has a connection of a session.
func (s PathState) live() bool { return s.well() || s == PathSuspected || s == PathDraining }

type pathInput uint8

const (
	pathStart pathInput = iota
	pathConnected
	pathAuthenticated
	pathActivate
	pathRest
	pathSilent
	pathHeard
	pathDrain
	pathFailed
	pathReserve
	pathPause
	pathRetry
	pathStop
	pathInputEnd
)

// next returns the state after in, and whether in changes anything in this state. An input that a state does not know leaves it as it is.
func (s PathState) next(in pathInput) (PathState, bool) {
	switch {
	case in == pathStop:
		return PathIdle, s != PathIdle
	case s == PathIdle && in == pathStart, s == PathBackoff && in == pathRetry, s == PathReserved && in == pathRetry:
		return PathDialing, true
	case s == PathDialing && in == pathConnected, s == PathReserved && in == pathConnected:
		return PathAuthenticating, true
	case s == PathAuthenticating && in == pathAuthenticated, s == PathSuspected && in == pathHeard, s == PathActive && in == pathRest:
		return PathStandby, true
	case s == PathStandby && in == pathActivate:
		return PathActive, true
	case s.well() && in == pathSilent:
		return PathSuspected, true
	case s.live() && s != PathDraining && in == pathDrain:
		return PathDraining, true
	case in == pathFailed && (s == PathDialing || s == PathAuthenticating || s.live()):
		return PathLost, true
	case s == PathLost && in == pathReserve:
		return PathReserved, true
	case in == pathPause && (s == PathLost || s == PathReserved):
		return PathBackoff, true
	}
	return s, false
}
