package dataport

import "testing"

func TestPathStates(t *testing.T) {
	all := []PathState{PathIdle, PathDialing, PathAuthenticating, PathActive, PathSuspected, PathLost, PathBackoff}
	// Rows: what each input does; a state that is not named stays.
	for _, row := range []struct {
		in   pathInput
		want map[PathState]PathState
	}{
		{pathStart, map[PathState]PathState{PathIdle: PathDialing}},
		{pathConnected, map[PathState]PathState{PathDialing: PathAuthenticating}},
		{pathAuthenticated, map[PathState]PathState{PathAuthenticating: PathActive}},
		{pathSilent, map[PathState]PathState{PathActive: PathSuspected}},
		{pathHeard, map[PathState]PathState{PathSuspected: PathActive}},
		{pathFailed, map[PathState]PathState{PathDialing: PathLost, PathAuthenticating: PathLost, PathActive: PathLost, PathSuspected: PathLost}},
		{pathPause, map[PathState]PathState{PathLost: PathBackoff}},
		{pathRetry, map[PathState]PathState{PathBackoff: PathDialing}},
		{pathStop, map[PathState]PathState{PathDialing: PathIdle, PathAuthenticating: PathIdle, PathActive: PathIdle, PathSuspected: PathIdle, PathLost: PathIdle, PathBackoff: PathIdle}},
	} {
		for _, s := range all {
			want, changes := row.want[s]
			if !changes {
				want = s
			}
			if got, ok := s.next(row.in); got != want || ok != changes {
				t.Errorf("%v on input %d: %v %v, want %v %v", s, row.in, got, ok, want, changes)
			}
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
