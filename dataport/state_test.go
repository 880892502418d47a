package dataport

import (
	"slices"
	"testing"
)

func TestPathStates(t *testing.T) {
	all := []PathState{
		PathIdle, PathDialing, PathAuthenticating, PathActive, PathSuspected, PathLost, PathBackoff, PathStandby, PathReserved, PathDraining,
	}
	live := []PathState{PathActive, PathSuspected, PathStandby, PathDraining}
	to := func(want PathState, from ...PathState) map[PathState]PathState {
		m := map[PathState]PathState{}
		for _, s := range from {
			m[s] = want
		}
		return m
	}
	// Rows: what each input does; a state that is not named stays.
	rows := map[pathInput]map[PathState]PathState{
		pathStart:         to(PathDialing, PathIdle),
		pathConnected:     to(PathAuthenticating, PathDialing, PathReserved),
		pathAuthenticated: to(PathStandby, PathAuthenticating),
		pathActivate:      to(PathActive, PathStandby),
		pathRest:          to(PathStandby, PathActive),
		pathSilent:        to(PathSuspected, PathActive, PathStandby),
		pathHeard:         to(PathStandby, PathSuspected),
		pathDrain:         to(PathDraining, PathActive, PathStandby, PathSuspected),
		pathFailed:        to(PathLost, append(live, PathDialing, PathAuthenticating)...),
		pathReserve:       to(PathReserved, PathLost),
		pathPause:         to(PathBackoff, PathLost, PathReserved),
		pathRetry:         to(PathDialing, PathBackoff, PathReserved),
		pathStop:          to(PathIdle, all[1:]...),
	}
	if len(rows) != int(pathInputEnd) || len(all) != len(pathStateNames) {
		t.Fatalf("%d inputs of %d, %d states of %d", len(rows), pathInputEnd, len(all), len(pathStateNames))
	}
	for in, row := range rows {
		for _, s := range all {
			want, changes := row[s]
			if !changes {
				want = s
			}
			if got, ok := s.next(in); got != want || ok != changes {
				t.Errorf("%v on input %d: %v %v, want %v %v", s, in, got, ok, want, changes)
			}
		}
	}
	for _, s := range all {
		if s.live() != slices.Contains(live, s) || s.well() != (s == PathActive || s == PathStandby) {
			t.Errorf("%v: live %v, well %v", s, s.live(), s.well())
		}
	}
}

func TestPortStates(t *testing.T) {
	for _, row := range []struct {
		name string
		ins  []portInput
		want PortState
	}{
		{"connected", []portInput{portSessionUp}, PortConnected},
		{"a path lost", []portInput{portSessionUp, portPathMissing}, PortDegraded},
		{"and back", []portInput{portSessionUp, portPathMissing, portAllPathsUp}, PortConnected},
		{"path news while opening", []portInput{portAllPathsUp}, PortOpening},
		{"peer restarted", []portInput{portSessionUp, portSessionDown}, PortOpening},
		{"unreachable", []portInput{portSessionUp, portSessionDown, portTargetUnreachable}, PortUnreachable},
		{"returns", []portInput{portTargetUnreachable, portSessionUp}, PortConnected},
		{"switching", []portInput{portTargetUnreachable, portSwitch}, PortSwitching},
		{"backup dead too", []portInput{portSwitch, portTargetUnreachable}, PortUnreachable},
		{"session news while switching", []portInput{portSwitch, portSessionDown}, PortSwitching},
		{"suspended", []portInput{portSessionUp, portSuspend, portPathMissing}, PortSuspended},
		{"resumed into what it is by then", []portInput{portSessionUp, portSuspend, portPathMissing, portResume}, PortDegraded},
		{"fenced", []portInput{portSessionUp, portSessionDown, portFence}, PortFenced},
		{"nothing leads out of fenced", []portInput{portFence, portSessionUp, portSessionDown, portAllPathsUp, portPathMissing, portTargetUnreachable, portSwitch}, PortFenced},
		{"but a raise", []portInput{portFence, portRaise}, PortOpening},
		{"and from there on", []portInput{portFence, portRaise, portSessionUp}, PortConnected},
		{"a raise without a fence", []portInput{portSessionUp, portRaise}, PortConnected},
		{"fenced from unreachable", []portInput{portTargetUnreachable, portFence}, PortFenced},
		{"fenced while suspended", []portInput{portSuspend, portFence}, PortFenced},
		{"suspended while fenced", []portInput{portFence, portSuspend, portRaise}, PortSuspended},
		{"resumed while fenced", []portInput{portSuspend, portFence, portResume, portRaise}, PortOpening},
		{"closed while fenced", []portInput{portFence, portClose}, PortIsClosed},
		{"not fenced when closed", []portInput{portClose, portFence}, PortIsClosed},
		{"closed for good", []portInput{portClose, portSessionUp, portSuspend}, PortIsClosed},
	} {
		var m portMachine
		for _, in := range row.ins {
			m.on(in)
		}
		if got := m.state(); got != row.want {
			t.Errorf("%s: %v, want %v", row.name, got, row.want)
		}
	}
}
