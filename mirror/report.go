package mirror

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"mirror-agent/journal"
)

// stateReport is the agent's state in the operator's words: what it is, why,
// since when, and what can be done.
type stateReport struct {
	state, reason, next string
	since               time.Time
}

func pathName(id int) string { return strconv.Itoa(id) }

// noteState computes the state, and makes an event of a new one.
func (a *Agent) noteState() {
	failed := a.v.Err()
	a.mu.Lock()
	s := a.stateLocked(failed)
	changed := s.state != a.state.state
	s.since = a.state.since
	if changed {
		s.since = time.Now()
	}
	a.state = s
	a.mu.Unlock()
	if changed {
		a.event("state", "", "%s%s", s.state, reasonSuffix(s.reason))
	}
}

func reasonSuffix(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

func (a *Agent) stateLocked(failed error) stateReport {
	switch {
	case failed != nil:
		return a.failedStateLocked(failed)
	case a.startError != nil:
		return stateReport{state: "failed", reason: a.startError.Error(), next: "mend that, then restart the agent"}
	case a.fenced != "":
		return a.fencedStateLocked()
	}
	if a.handing != nil {
		return a.handingStateLocked()
	}
	if d := a.v.damageNow(); d != nil {
		return a.damagedState(d)
	}
	if t := a.v.troubleNow(); t != nil {
		return a.troubleState(t)
	}
	if a.v.Role() == RolePrimary {
		return a.primaryStateLocked()
	}
	return a.secondaryStateLocked()
}

func (a *Agent) primaryStateLocked() stateReport {
	if a.starting != "" {
		return stateReport{state: "starting", reason: a.starting + reasonSuffix(a.lease.problem), next: "the front opens as soon as a follower has answered; start the target, or wait"}
	}
	if why := a.frozenLocked(); why != "" {
		return stateReport{
			state: stateFrozen, reason: why,
			next: "it goes on by itself as soon as the lease is renewed: look at the arbiter and the way to it; without it, restart this agent without --arbiter",
		}
	}
	if len(a.followers) == 0 {
		return stateReport{state: "standalone", reason: "no target is configured", next: "start this source with --target HOST:PORT to mirror it"}
	}
	f := a.followers[min(a.current, len(a.followers)-1)]
	switch f.state {
	case FollowerStreaming:
		return stateReport{state: "in sync", reason: f.target + " is streaming" + a.othersLocked()}
	case FollowerResync:
		return stateReport{state: "resync", reason: fmt.Sprintf("%s is being copied: %s", f.target, f.reason), next: "wait; the follower counts when the copy is complete"}
	case FollowerCatchUp:
		return stateReport{state: "catch-up", reason: f.target + " reads what it missed from the log", next: "wait"}
	case FollowerSuspended:
		return stateReport{state: "suspended", reason: "by the operator", next: "mirror-agent resume"}
	}
	s := stateReport{state: "degraded", reason: fmt.Sprintf("%s is %s%s", f.target, f.state, reasonSuffix(f.reason))}
	if a.c.OnLoss == OnLossFreeze {
		s.reason += "; writes wait for it (on-loss: freeze)"
	} else {
		s.reason += "; writes continue on this host only (on-loss: continue)"
	}
	s.next = "it is retried by itself"
	switch ready := a.readyLocked(); {
	case ready != "":
		s.next += fmt.Sprintf("; or mirror-agent switch %s, which is in sync: nothing has to be copied", ready)
	case a.current+1 < len(a.followers) && a.c.Switch == SwitchManual:
		s.next += "; or mirror-agent switch backup"
	case a.current > 0:
		s.next += "; or mirror-agent switch primary"
	}
	return s
}

// readyLocked is what to say to switch to a follower that is in sync.
func (a *Agent) readyLocked() string {
	next := a.nextBackupLocked()
	for i, f := range a.followers {
		if i == a.current || f.state != FollowerStreaming {
			continue
		}
		switch i {
		case 0:
			return "primary"
		case next:
			return "backup"
		}
		return f.target
	}
	return ""
}

// othersLocked counts the followers that are fed beside the active one.
func (a *Agent) othersLocked() string {
	var fed, good int
	for i, f := range a.followers {
		if i == a.current || !f.hot {
			continue
		}
		fed++
		if f.state == FollowerStreaming {
			good++
		}
	}
	if fed == 0 {
		return ""
	}
	return fmt.Sprintf(", %d of %d others are in sync beside it", good, fed)
}

func (a *Agent) secondaryStateLocked() stateReport {
	blank := a.v.flags()&stateBlank != 0
	in := a.inbound
	if in != nil {
		if p := in.receiver.progress(); p != nil {
			return stateReport{state: "resync", reason: fmt.Sprintf("a copy from %s is under way", in.link.Peer()), next: "wait"}
		}
		if in.receiver.isStreaming() {
			return stateReport{state: "streaming", reason: "fed by " + in.link.Peer()}
		}
	}
	if a.held.err != nil {
		return a.resyncHeldState(blank)
	}
	if a.v.flags()&stateDiverged != 0 {
		return stateReport{
			state: "rejoining", reason: "this old primary's volume was given up and waits for the new primary; what is here is its own old state",
			next: "name this host to the new primary (--target, --backup); it copies what differs",
		}
	}
	if blank {
		return stateReport{state: "empty", reason: "this volume has never been in sync", next: "start the source with this host as its --target"}
	}
	if a.v.flags()&stateLeft != 0 {
		return stateReport{
			state: "left", reason: "the source moved its data flow to another target; what is here is old",
			next: "wait until it comes back (mirror-agent switch primary on the source); do not promote this host",
		}
	}
	if s, ok := a.handedStateLocked(); ok {
		return s
	}
	return stateReport{
		state: "waiting", reason: "no source is connected",
		next: "start the source; or, when it is lost, mirror-agent promote",
	}
}

// Status may be called at any time from any goroutine.
func (a *Agent) Status() Status {
	a.noteState()
	log := a.v.log
	stats := a.v.Stats()
	now := time.Now()
	electorate := a.electorateStatus()
	a.mu.Lock()
	defer a.mu.Unlock()
	s := Status{
		Electorate: electorate,
		Name:       a.c.Name, UUID: a.uuid, Role: a.v.Role().String(), State: a.state.state, Reason: a.state.reason,
		Since: a.state.since, NextStep: a.state.next, Mode: string(a.c.Mode), OnLoss: string(a.c.OnLoss), OnFull: string(a.c.OnFull), Switch: string(a.c.Switch),
		Generation: rankString(a.v.Generation()), Node: a.node, Home: a.c.Role == RolePrimary, Version: a.c.Version, Listen: a.transport.addresses(), Announced: a.transport.announced(),
		Device: DeviceStatus{Path: a.c.Device, SizeBytes: a.v.size.Load(), SpareBytes: a.v.spare()},
		Log: LogStatus{
			Path: a.c.journalPath(), Head: uint64(log.Head()), Durable: uint64(log.Durable()), Committed: uint64(a.v.Committed()),
			Applied: uint64(log.Applied()), Tail: uint64(log.Tail()), SizeBytes: log.Capacity(),
		},
		NBD: a.front.Stats(), Followers: []FollowerStatus{}, Alarms: []Alarm{},
	}
	s.Log.fill(&stats)
	if a.c.Key != nil {
		s.Key = shownKey(&a.c)
	}
	if s.NBD.Address == "" && a.serving {
		s.NBD.Address = a.nbd
	}
	if a.v.Role() == RolePrimary {
		a.followerStatusLocked(&s, now)
		if a.current < len(a.followers) {
			s.Network = a.followerNetworkLocked(a.followers[a.current])
		}
	} else {
		s.Source = a.sourceStatusLocked()
	}
	s.Arbiter = a.arbiterStatusLocked()
	a.alarmsLocked(&s, now)
	a.checksStatusLocked(&s, now)
	if d, _, ok := a.Drill(); ok && d.Running {
		s.Drill = &d
	}
	s.Alarms = append(s.Alarms, a.stuck...)
	return s
}

func (a *Agent) followerStatusLocked(s *Status, now time.Time) {
	head := a.v.log.Head()
	for i, f := range a.followers {
		if f.dynamic && !f.hot && i != a.current {
			continue // it is another one
		}
		x := f.last
		if f.sender != nil {
			x = f.sender.lastAck()
		}
		if x.Durable == 0 { // not heard of since this start
			x.Durable = a.v.dirty.view(f.name).base
		}
		fs := FollowerStatus{
			Target: f.target, Kind: f.kind, Home: f.home, Hot: f.hot, State: string(f.state), Reason: f.reason, Since: f.since, Active: i == a.current,
			Received: uint64(x.Received), Durable: uint64(x.Durable), Paths: []PathStatus{},
		}
		if f.sender != nil {
			fs.Trouble, fs.Host = troubleName(x.Trouble), f.sender.other.Load()
		}
		if i == a.current {
			s.ActiveTarget = f.target
		}
		fs.Paths = append(fs.Paths, a.followerPathsLocked(f)...)
		if f.port != noPort {
			fs.Port = a.transport.state(f.port)
		}
		if x.Durable >= firstLSN {
			fs.LagBytes = uint64(head - min(head, x.Durable))
			fs.RPOSeconds = a.rpo(x.Durable, head, now)
		} else {
			fs.LagBytes = uint64(head)
		}
		fs.DirtyBytes, fs.Resynced = a.v.dirty.dirtyBytes(f.name), f.resynced
		fs.lost, fs.lostAt = a.v.dirty.lostTrack(f.name)
		if f.sender != nil {
			fs.Resync = f.sender.resync.status()
			if fs.Resync != nil {
				fs.DirtyBytes = fs.Resync.TotalBytes - fs.Resync.DoneBytes
			}
		}
		s.Followers = append(s.Followers, fs)
	}
}

// rpo is the age of the oldest write that is not durable at lsn, in seconds.
func (a *Agent) rpo(lsn, head journal.LSN, now time.Time) float64 {
	if lsn >= head {
		return 0
	}
	return a.v.ageAt(lsn, head, now).Seconds()
}

var errStopScan = fmt.Errorf("enough")

func (a *Agent) sourceStatusLocked() *SourceStatus {
	in := a.inbound
	if in == nil {
		return &SourceStatus{Paths: []PathStatus{}}
	}
	r := in.receiver
	r.mu.Lock()
	s := &SourceStatus{
		Peer: in.link.Peer(), Connected: true, LastSeen: r.lastSeen, Received: uint64(r.received),
		Durable: uint64(a.v.log.Durable()), SourceHead: uint64(r.sourceHead), Active: r.told.Active, Paths: []PathStatus{},
	}
	for _, m := range r.told.Members {
		s.Members = append(s.Members, MemberStatus{Name: m.Name, Durable: uint64(m.Durable)})
	}
	r.mu.Unlock()
	s.Resync, s.Host = r.progress(), r.other.Load()
	s.Paths = append(s.Paths, linkPaths(in.link)...)
	s.Network = linkNetwork(in.link)
	return s
}

func (a *Agent) alarmsLocked(s *Status, now time.Time) {
	switch s.State {
	case "failed", "fenced", "degraded", stateDeviceFull, stateDeviceError, stateResyncHeld, stateDamaged, stateFrozen:
		s.Alarms = append(s.Alarms, Alarm{Name: s.State, Since: s.Since, Reason: s.Reason, NextStep: s.NextStep})
	}
	for _, f := range s.Followers {
		if f.Hot && !f.Active && f.State != string(FollowerStreaming) && s.Role == RolePrimary.String() {
			s.Alarms = append(s.Alarms, redundancyAlarm(&f))
		}
		if f.State != string(FollowerStreaming) {
			continue
		}
		for _, p := range f.Paths {
			if p.Unproven {
				continue
			}
			switch p.State {
			case "active", "standby", "draining": // well, or on its way out because somebody said so
				continue
			}
			s.Alarms = append(s.Alarms, Alarm{
				Name: "path-down", Since: p.Since, Reason: fmt.Sprintf("path %d to %s is %s%s; the other paths carry the data", p.ID, p.Remote, p.State, reasonSuffix(p.Reason)),
				NextStep: "it is dialled again by itself; mend the link, or mirror-agent path reset; path remove when it is not wanted any more",
			})
		}
	}
	if pinned, follower := a.v.pinned(); follower && s.Role == RolePrimary.String() {
		held := float64(s.Log.Head-min(s.Log.Head, uint64(pinned))) / float64(s.Log.SizeBytes)
		if held > 0.8 {
			s.Alarms = append(s.Alarms, a.heldAlarm(s, held, now))
		}
	}
	for _, f := range s.Followers {
		if f.lost != "" && s.Role == RolePrimary.String() {
			s.Alarms = append(s.Alarms, Alarm{
				Name: "tracking-lost", Since: f.lostAt, Reason: fmt.Sprintf("%s: %s; nothing is lost, but all of its blocks will be compared when it is back", f.Target, f.lost),
				NextStep: "make room, or mend the disk, where the files beside the log are (--state-dir): mirror-agent doctor; it ends with the next resync",
			})
		}
		if f.Trouble != "" {
			s.Alarms = append(s.Alarms, Alarm{
				Name: "target-" + strings.ReplaceAll(f.Trouble, " ", "-"), Since: now, Reason: fmt.Sprintf("%s says: %s; its log still takes what comes, until that is full", f.Target, f.Trouble),
				NextStep: "see mirror-agent explain on that host",
			})
		}
	}
	if x, bad := a.badReadAlarm(); bad {
		s.Alarms = append(s.Alarms, x)
	}
	if used := float64(s.Log.Head-s.Log.Applied) / float64(s.Log.SizeBytes); used > 0.8 {
		s.Alarms = append(s.Alarms, Alarm{
			Name: "log-full", Since: now, Reason: fmt.Sprintf("%.0f %% of the log's %s are not yet applied", used*100, humanize.IBytes(uint64(s.Log.SizeBytes))),
			NextStep: "the backing device is slower than the writes: writers are slowed to its pace",
		})
	}
	if used := float64(s.Log.OverlayExtents) / float64(max(s.Log.OverlayLimit, 1)); used > 0.8 {
		s.Alarms = append(s.Alarms, Alarm{
			Name: "overlay-full", Since: now, Reason: fmt.Sprintf("%d small pieces are not yet applied, %.0f %% of what the memory has room for", s.Log.OverlayExtents, used*100),
			NextStep: "the backing device is slower than the writes: writers are slowed to its pace; more memory (of the machine, or systemd's MemoryMax) lets more wait",
		})
	}
}

// redundancyAlarm: a follower that is to be fed all the time is not in sync.
func redundancyAlarm(f *FollowerStatus) Alarm {
	x := Alarm{
		Name: "redundancy-reduced", Since: f.Since, Reason: fmt.Sprintf("%s, a hot %s, is %s%s: a switch-over to it would not be free", f.Target, f.Kind, f.State, reasonSuffix(f.Reason)),
		NextStep: "it is retried by itself; look at that host and its links",
	}
	switch FollowerState(f.State) {
	case FollowerSuspended:
		x.NextStep = "mirror-agent resume"
	case FollowerResync, FollowerCatchUp, FollowerHandshake:
		x.NextStep = "wait; it gets what it lacks"
	case FollowerIdle, FollowerConnecting, FollowerStreaming, FollowerDown, FollowerRefused:
	}
	return x
}

// heldAlarm: most of the log is kept for a follower that is too slow.
func (a *Agent) heldAlarm(s *Status, held float64, now time.Time) Alarm {
	who := a.v.slowest()
	x := Alarm{
		Name: "log-held", Since: now,
		Reason:   fmt.Sprintf("%.0f %% of the log's %s are held for %s, which has not got them: writers are slowed to its pace", held*100, humanize.IBytes(uint64(s.Log.SizeBytes)), who),
		NextStep: fmt.Sprintf("after %s of that the mirror goes on without it and resyncs what it lacks later (on-full: track); give it a faster link or disk, or a larger --journal-size", a.c.PushBack),
	}
	if a.c.OnFull == OnFullWait {
		x.NextStep = "writers wait for it as long as it takes (on-full: wait); mirror-agent suspend lets them go on without it, --on-full track does so by itself"
	}
	return x
}
