package mirror

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"mirror-agent/journal"
)

// A primary that becomes a secondary while its agent runs, the other way round than a promotion.

// handedOver says to whom a source has handed over. It stands in the anchor until that one, or another source, feeds this volume,
// or the volume is promoted.
type handedOver struct {
	token uint64 // of the order
	node  string // who was to take the lead
}

const maxHandedName = 64 // bytes, the anchor's room is small

func (h handedOver) encode() string {
	node := strings.Map(func(r rune) rune {
		if r < ' ' {
			return '?'
		}
		return r
	}, h.node)
	return fmt.Sprintf("%016x %s", h.token, node[:min(len(node), maxHandedName)])
}

// parseHandedOver is false for a volume that was not handed over.
func parseHandedOver(s string) (h handedOver, ok bool) {
	token, node, ok := strings.Cut(s, " ")
	b, err := hex.DecodeString(token)
	if !ok || err != nil || len(b) != 8 {
		return h, false
	}
	for _, x := range b {
		h.token = h.token<<8 | uint64(x)
	}
	h.node = node
	return h, true
}

func (v *Volume) handedOver() (handedOver, bool) {
	return parseHandedOver(parseSidecar(v.log.Anchor().Extra).handed)
}

// errWentOn: the log went on where it was to stand still.
var errWentOn = errors.New("mirror: something was written meanwhile")

// stepDown makes a primary that refuses writes a secondary, durably. Its log ends at lsn and is durable up to there; nothing of
// it is ever cut again. errWentOn: it does not.
func (v *Volume) stepDown(lsn journal.LSN, to handedOver) error {
	v.applyMu.Lock()
	defer v.applyMu.Unlock()
	v.declared.Store(uint64(lsn)) // first: what is committed stays so
	v.role.Store(uint32(RoleSecondary))
	if v.log.Head() != lsn || v.log.Durable() < lsn { // nothing is let in any more when this is asked
		v.role.Store(uint32(RolePrimary))
		return errWentOn
	}
	err := v.log.WriteAnchor(func(a *journal.Anchor) {
		v.fillAnchor(a)
		a.State &^= stateLeft
		withSidecar(a, func(s *sidecar) { s.handed, s.active = to.encode(), "" })
	})
	if err != nil {
		// The disk may say either by now: whatever comes next, nothing is written here before the next start.
		return v.fail("journal", err)
	}
	v.refused.Store(nil)
	v.changed()
	return nil
}

// forgetHandedOver: somebody leads.
func (v *Volume) forgetHandedOver() error {
	if _, ok := v.handedOver(); !ok {
		return nil
	}
	return v.journalError(v.log.WriteAnchor(func(a *journal.Anchor) {
		v.fillAnchor(a)
		withSidecar(a, func(s *sidecar) { s.handed = "" })
	}))
}

// stopLeading ends what a primary does beside serving: nobody is fed from here on. The front is closed, the volume a secondary.
func (a *Agent) stopLeading() {
	a.mu.Lock()
	p := a.promise
	a.promise, a.serving, a.nbd, a.suspended = nil, false, "", false
	var feeding []chan struct{}
	for _, f := range a.followers {
		if f.feeding != nil {
			feeding = append(feeding, f.feeding)
		}
	}
	a.mu.Unlock()
	if p != nil {
		p.close()
	}
	a.stopSenders()
	for _, done := range feeding {
		<-done
	}
	a.v.gate.Store(&gateBox{openGate{}})
	a.mu.Lock()
	for _, f := range a.followers {
		f.state, f.reason, f.sender, f.feeding, f.session, f.up = FollowerIdle, "", nil, nil, 0, false
	}
	a.mu.Unlock()
	a.hangUpDue.Store(a.c.Role == RoleSecondary)
	a.tellGeneration()
}
