package dataport

import "fmt"

// PortState is where a port is.
//
//	             session up           a path lost
//	 Opening ───────────────► Connected ⇄ Degraded
//	    │                      │  ▲  all paths up │
//	    │ unreachable          │  │               │
//	    ▼      unreachable     │  │ session up    │
//	 Unreachable ◄─────────────┴──┼───────────────┘
//	    │ │                       │
//	    │ └── session up ────────►│
//	    │ switch                  │ session up
//	    ▼                         │
//	 Switching ───────────────────┘   (unreachable: back to Unreachable)
//
//	Connected, Degraded ── session down (peer restarted or closed it) ──► Opening
//	Connected, Degraded, Opening ── switch ──► Switching
//	any ── fence ──► Fenced ── raise ──► Opening;   nothing else leads out of Fenced but close
//	any ── suspend ──► Suspended ── resume ──► whatever it is by then;   any ── close ──► Closed, for good
//
// Suspended lies over the other states: paths and sessions come and go beneath it, only messages are held back. Fenced shows through it.
// Nothing in this file knows a clock, a connection or a goroutine.
type PortState uint8

// The states of a port.
const (
	PortOpening PortState = iota
	PortConnected
	PortDegraded
	PortUnreachable
	PortSwitching
	PortSuspended
	PortIsClosed
	PortFenced
)

var portStateNames = [...]string{"opening", "connected", "degraded", "unreachable", "switching", "suspended", "closed", "fenced"}

func (s PortState) String() string {
	if int(s) >= len(portStateNames) {
		return fmt.Sprintf("PortState(%d)", uint8(s))
	}
	return portStateNames[s]
}

type portInput uint8

const (
	portSessionUp portInput = iota
	portSessionDown
	portAllPathsUp
	portPathMissing
	portTargetUnreachable
	portSwitch
	portSuspend
	portResume
	portClose
	portFence
	portRaise
)

// portMachine is the state of a port; suspended lies over base.
type portMachine struct {
	base      PortState
	suspended bool
}

func (m portMachine) state() PortState {
	if m.suspended && m.base != PortIsClosed && m.base != PortFenced {
		return PortSuspended
	}
	return m.base
}

// on takes an input and reports whether it changed anything.
func (m *portMachine) on(in portInput) bool {
	before := *m
	if m.base == PortIsClosed {
		return false
	}
	up := m.base == PortConnected || m.base == PortDegraded
	switch in {
	case portFence:
		m.base = PortFenced
	case portRaise:
		if m.base == PortFenced {
			m.base = PortOpening
		}
	case portSuspend:
		m.suspended = true
	case portResume:
		m.suspended = false
	case portClose:
		m.base = PortIsClosed
	}
	if m.base == PortFenced {
		return *m != before
	}
	switch in {
	case portSessionUp:
		m.base = PortConnected
	case portSessionDown:
		if up {
			m.base = PortOpening
		}
	case portAllPathsUp:
		if up {
			m.base = PortConnected
		}
	case portPathMissing:
		if up {
			m.base = PortDegraded
		}
	case portTargetUnreachable:
		m.base = PortUnreachable
	case portSwitch:
		m.base = PortSwitching
	}
	return *m != before
}
