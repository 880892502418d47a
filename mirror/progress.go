package mirror

import "fmt"

// FollowerState is how far a follower is, as its source sees it.
//
//	           connected             stream           caughtUp
//	connecting ─────────→ handshake ────────→ catch-up ───────→ streaming
//	    ↑  ↑                 │  │ resync         ↑ copied  ←─ behind ─┘
//	    │  │                 │  └──────→ resync ─┘
//	    │  └── lost ─────────┴─ from any state with a session ─
//	    │      refused: from handshake, resync, catch-up, streaming → refused
//	    └── connected again ── down ←── unreachable ── from any state
//
// refused stays until the next session, which begins a new handshake;
// suspended is entered from any state by the operator and left by resumed.
type FollowerState string

// The states of a follower.
const (
	FollowerIdle       FollowerState = "idle" // a backup that is not in use
	FollowerConnecting FollowerState = "connecting"
	FollowerHandshake  FollowerState = "handshake"
	FollowerResync     FollowerState = "resync"
	FollowerCatchUp    FollowerState = "catch-up"
	FollowerStreaming  FollowerState = "streaming"
	FollowerDown       FollowerState = "down"
	FollowerRefused    FollowerState = "refused"
	FollowerSuspended  FollowerState = "suspended"
)

type followerEvent string

const (
	followerDial        followerEvent = "dial"
	followerConnected   followerEvent = "connected"
	followerStream      followerEvent = "stream"
	followerNeedsResync followerEvent = "resync"
	followerCopied      followerEvent = "copied"
	followerCaughtUp    followerEvent = "caught-up"
	followerBehind      followerEvent = "behind"
	followerLost        followerEvent = "lost"
	followerUnreachable followerEvent = "unreachable"
	followerRefuse      followerEvent = "refuse"
	followerSuspend     followerEvent = "suspend"
	followerResume      followerEvent = "resume"
	followerLeave       followerEvent = "leave" // the flow moved to another target
)

var followerTransitions = map[FollowerState]map[followerEvent]FollowerState{
	FollowerIdle: {followerDial: FollowerConnecting, followerConnected: FollowerHandshake},
	FollowerConnecting: {
		followerConnected: FollowerHandshake, followerUnreachable: FollowerDown, followerRefuse: FollowerRefused,
	},
	FollowerHandshake: {
		followerStream: FollowerCatchUp, followerNeedsResync: FollowerResync, followerRefuse: FollowerRefused,
		followerLost: FollowerConnecting, followerUnreachable: FollowerDown,
	},
	FollowerResync: {
		followerCopied: FollowerCatchUp, followerRefuse: FollowerRefused,
		followerLost: FollowerConnecting, followerUnreachable: FollowerDown,
	},
	FollowerCatchUp: {
		followerCaughtUp: FollowerStreaming, followerRefuse: FollowerRefused,
		followerLost: FollowerConnecting, followerUnreachable: FollowerDown,
	},
	FollowerStreaming: {
		followerBehind: FollowerCatchUp,
		followerRefuse: FollowerRefused, followerLost: FollowerConnecting, followerUnreachable: FollowerDown,
	},
	FollowerDown:      {followerConnected: FollowerHandshake, followerDial: FollowerConnecting},
	FollowerRefused:   {followerConnected: FollowerHandshake, followerUnreachable: FollowerDown, followerDial: FollowerConnecting},
	FollowerSuspended: {followerResume: FollowerConnecting},
}

// nextFollowerState returns the state after an event; an event that means
// nothing in the state leaves it as it is. An unknown state is a defect.
func nextFollowerState(s FollowerState, e followerEvent) FollowerState {
	row, ok := followerTransitions[s]
	if !ok {
		panic(fmt.Sprintf("mirror: follower in unknown state %q", s))
	}
	switch {
	case e == followerSuspend:
		return FollowerSuspended
	case e == followerLeave && s != FollowerSuspended:
		return FollowerIdle
	}
	if t, ok := row[e]; ok {
		return t
	}
	return s
}

// counts says whether a follower in this state counts for a mode: it is in
// sync and promotable.
func (s FollowerState) counts() bool { return s == FollowerStreaming }
