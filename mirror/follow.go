package mirror

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// Who feeds whom is a matter of roles, not of who dials. A source need not listen anywhere: when another host has taken the lead it
// goes on dialling its targets and backups, and asks, over each of these sessions, to be fed (calls in). The one that leads
// feeds it over that very session. The other followers are dialled by who leads: it knows the addresses of all that were fed
// from what its source told (members.go, memberfile.go). Such a host is a follower from its first session on, not before: that
// a host was a member once is no reason to wait for it.

// follow asks to be fed.
type follow struct {
	Mirror string   `json:"mirror"`
	Name   string   `json:"name"`
	Node   string   `json:"node"`
	ID     [16]byte `json:"id"` // of the volume
	// Home: this host is the source by its configuration.
	Home      bool     `json:"home"`
	Addresses []string `json:"addresses,omitempty"` // where it listens
	// Handed: it has handed over by the order with this token, and nobody has fed it since. Its log is durable up to Head.
	Handed string `json:"handed,omitempty"`
	Head   uint64 `json:"head"`
	Chain  uint64 `json:"chain"`
}

// followReply says whether it is, or will be.
type followReply struct {
	Refused    string `json:"refused,omitempty"`
	Node       string `json:"node"`
	Primary    bool   `json:"primary"`
	Generation string `json:"generation"`
}

const (
	// callInAgain is the pause before a host that does not lead is asked again, fedAgain the one before a host that does.
	callInAgain = 500 * time.Millisecond
	fedAgain    = 5 * time.Second
)

// callsIn: this secondary dials others to be fed. One that has handed over does so until somebody feeds it.
func (a *Agent) callsIn() bool {
	if a.v.Role() != RoleSecondary {
		return false
	}
	_, handed := a.v.handedOver()
	return handed || a.c.Role == RolePrimary
}

// callIn has a secondary dial its targets and backups, and the members that it fed, and ask to be fed.
func (a *Agent) callIn() error {
	if !a.callsIn() {
		return nil
	}
	for i, f := range a.c.followers() {
		if err := a.transport.open(i, f.addresses); err != nil {
			return err
		}
	}
	if a.c.Role == RoleSecondary {
		a.hangUpDue.Store(true)
		a.dialMembers()
	}
	for _, port := range a.dialledPorts() {
		if l, session := a.transport.session(port); l != nil {
			a.askToFollow(l, session)
		}
	}
	return nil
}

// dialledPorts are those to configured followers and to members.
func (a *Agent) dialledPorts() (ports []int) {
	for i := range a.c.followers() {
		ports = append(ports, i)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.candidates {
		ports = append(ports, c.port)
	}
	return ports
}

// hangUp ends what a target dialled while it led, once another one feeds it: from now on it is dialled.
func (a *Agent) hangUp() {
	if !a.hangUpDue.Load() || a.v.Role() != RoleSecondary || a.callsIn() {
		return
	}
	a.hangUpDue.Store(false)
	for _, port := range a.dialledPorts() {
		a.transport.shut(port)
	}
	a.mu.Lock()
	a.candidates = nil
	a.mu.Unlock()
}

// askToFollow asks over one session until it ends or this volume leads.
func (a *Agent) askToFollow(l link, session uint64) {
	a.mu.Lock()
	if a.calling[session] {
		a.mu.Unlock()
		return
	}
	a.calling[session] = true
	a.mu.Unlock()
	a.spawn(func() {
		defer func() {
			a.mu.Lock()
			delete(a.calling, session)
			a.mu.Unlock()
		}()
		for a.callsIn() {
			reply, err := a.callOnce(a.tasks, l)
			wait := callInAgain
			if err == nil && reply.Primary {
				wait = fedAgain
			}
			select {
			case <-a.tasks.Done():
				return
			case <-l.Done():
				return
			case <-time.After(wait):
			}
		}
	})
}

func (a *Agent) callOnce(ctx context.Context, l link) (r followReply, err error) {
	head, chain := a.v.log.HeadChain()
	m := follow{
		Mirror: a.mirrorID(), Name: a.c.Name, Node: a.node, ID: a.v.id, Home: a.c.Role == RolePrimary, Addresses: a.transport.announced(),
		Head: uint64(head), Chain: chain, Handed: parseSidecar(a.v.log.Anchor().Extra).handed,
	}
	ctx, cancel := context.WithTimeout(ctx, a.c.UnreachableAfter)
	defer cancel()
	b, err := l.Call(ctx, encodeJSON(kindFollow, m))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("%w: %w", errMessage, err)
	}
	a.mu.Lock()
	a.called = r
	a.mu.Unlock()
	return r, nil
}

// onFollow takes the word of a host that wants to be fed.
func (a *Agent) onFollow(l link, session uint64, b []byte) ([]byte, error) {
	var m follow
	if err := decodeJSON(b, &m); err != nil {
		return nil, err
	}
	r := followReply{Node: a.node, Primary: a.v.Role() == RolePrimary, Generation: rankString(a.v.Generation())}
	switch id := a.mirrorID(); {
	case m.Mirror != id || m.Name != a.c.Name:
		r.Refused = fmt.Sprintf("%s holds mirror %q (uuid %s), not %q (uuid %s)", a.node, a.c.Name, id, m.Name, m.Mirror)
	case m.ID == [16]byte{} || m.ID == a.v.id:
		r.Refused = fmt.Sprintf("%s is asked by a volume without an id, or with its own", a.node)
	case !r.Primary:
		r.Refused = fmt.Sprintf("%s is secondary", a.node)
		a.heardOfHandover(&m)
	case a.takesLead():
		r.Primary, r.Refused = false, a.node+" takes the lead" // so it asks again soon
	default:
		r.Refused = a.followedBy(l, session, &m)
	}
	return encodeJSON(0, r)[1:], nil
}

// takesLead: in a handover, before all who follow this host are known. The one that hands over may call in already; takeLead
// makes it a follower, and it would be two.
func (a *Agent) takesLead() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.handing != nil && a.handing.step == handTake && len(a.followers) == 0
}

// followedBy feeds a host that has called in, and says why not, if not.
func (a *Agent) followedBy(l link, session uint64, m *follow) (refused string) {
	a.mu.Lock()
	if a.promise == nil || a.closed || a.fenced != "" {
		a.mu.Unlock()
		return a.node + " does not lead yet"
	}
	i := slices.IndexFunc(a.followers, func(f *follower) bool { return f.id == m.ID })
	young := i < 0 && slices.ContainsFunc(a.followers, func(f *follower) bool { return f.id == [16]byte{} && f.state == FollowerConnecting })
	young = young && time.Since(a.leading) < a.c.UnreachableAfter
	full := i < 0 && len(a.followers) >= maxCallers
	a.mu.Unlock()
	switch {
	case young:
		return a.node + " dials its configured targets first" // one of them may be that very host
	case full:
		return fmt.Sprintf("%s has met %d volumes that follow it, and takes no more: restart its agent, which forgets those that are gone", a.node, maxCallers)
	}
	if i < 0 {
		i = a.addFollower(memberInfo{ID: m.ID, Node: m.Node, Addresses: m.Addresses, Home: m.Home}, noPort, false)
	}
	a.mu.Lock()
	f := a.followers[i]
	f.home = m.Home
	other := f.up && f.session != session
	if len(m.Addresses) > 0 && f.port == noPort {
		f.addresses = m.Addresses
	}
	a.mu.Unlock()
	if !other { // else it is fed by its other session, which is as good
		a.sessionUp(i, l, session)
	}
	return ""
}

// maxCallers bounds the followers of a lead: a volume that was made anew is another one, and the one before stays listed.
const maxCallers = 4 * maxFollowers

// noPort is the port of a follower that dials this host.
const noPort = -1

// addFollower takes one more follower, while this volume leads. expected: it is known to be in sync, FLUSHes wait a moment for it.
func (a *Agent) addFollower(m memberInfo, port int, expected bool) int {
	a.mu.Lock()
	f := &follower{
		target: m.Node, addresses: m.Addresses, name: memberName(m.ID), kind: "backup", hot: true, id: m.ID, home: m.Home, port: port,
		state: FollowerConnecting, since: time.Now(), dynamic: true,
	}
	if len(a.followers) == 0 {
		f.kind = "target"
	}
	if len(m.Addresses) > 0 && port != noPort {
		f.target = m.Addresses[0]
	}
	if f.target == "" || slices.ContainsFunc(a.followers, func(o *follower) bool { return o.target == f.target }) {
		f.target += f.name[:7]
	}
	a.followers = append(slices.Clip(a.followers), f)
	i := len(a.followers) - 1
	p := a.promise
	spell := p.add(expected)
	a.mu.Unlock()
	if expected {
		a.expect(p, spell)
	}
	a.event("follower-new", f.target, "%s follows", f.target)
	return i
}

// candidate is a host that is dialled and will be a follower when it answers.
type candidate struct {
	memberInfo
	port int
}

// firstCandidatePort keeps the ports of candidates apart from those of configured followers.
const firstCandidatePort = 1000

// dialMembers dials the members that were fed by the last source and have addresses, but for those that are configured. Their
// addresses are what they said: without Announced there are only the configured ones.
func (a *Agent) dialMembers() {
	if !a.c.Announced {
		return
	}
	a.mu.Lock()
	var dial []candidate
	for _, m := range a.members {
		known := m.ID == a.v.id || !m.Fed || len(m.Addresses) == 0
		for _, c := range a.candidates {
			known = known || c.ID == m.ID
		}
		for _, f := range a.followers {
			known = known || f.port != noPort && (f.id == m.ID || slices.ContainsFunc(f.addresses, func(x string) bool { return slices.Contains(m.Addresses, x) }))
		}
		if !known {
			a.lastPort++
			dial = append(dial, candidate{m, firstCandidatePort + a.lastPort})
		}
	}
	a.candidates = append(a.candidates, dial...)
	a.mu.Unlock()
	for _, c := range dial {
		if err := a.transport.open(c.port, c.Addresses); err != nil {
			a.event("failed", "", "dial %s: %v", c.Node, err)
		}
	}
}

// portFollower says which follower a port leads to; -1: none, or one that is not a follower yet. A candidate becomes one when
// its first session is up.
func (a *Agent) portFollower(port int, up bool) int {
	if port < 0 {
		return -1
	}
	a.mu.Lock()
	i := slices.IndexFunc(a.followers, func(f *follower) bool { return f.port == port })
	c := slices.IndexFunc(a.candidates, func(c candidate) bool { return c.port == port })
	if i >= 0 || c < 0 || !up || a.promise == nil {
		a.mu.Unlock()
		return i
	}
	m := a.candidates[c].memberInfo
	k := slices.IndexFunc(a.followers, func(f *follower) bool { return f.id == m.ID })
	if k >= 0 && a.followers[k].port == noPort && !a.followers[k].up {
		a.followers[k].port = port // it used to dial this host
		a.mu.Unlock()
		return k
	}
	a.mu.Unlock()
	if k >= 0 {
		return -1 // it has called in
	}
	return a.addFollower(m, port, false)
}

// onlyConfigured: a new lead begins, with the followers that the configuration names.
func (a *Agent) onlyConfigured() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.followers = slices.DeleteFunc(slices.Clone(a.followers), func(f *follower) bool { return f.dynamic })
	for i, f := range a.followers {
		f.state, f.reason, f.asked, f.away, f.last = FollowerIdle, "", false, "", ack{}
		if f.hot || i == 0 {
			f.state = FollowerConnecting
		}
	}
	a.current, a.leading = 0, time.Now()
}

// shutUnfed ends the connections of a secondary that has called in, to those whom it does not feed now that it leads.
func (a *Agent) shutUnfed() {
	a.mu.Lock()
	var unfed []int
	for i, f := range a.followers {
		if f.port != noPort && !a.fedLocked(i) {
			unfed = append(unfed, f.port)
		}
	}
	a.mu.Unlock()
	for _, port := range unfed {
		a.transport.shut(port)
	}
}
