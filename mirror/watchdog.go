package mirror

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// The watchdog turns what ought to move and does not into an alarm, with a reason and a next step, and takes the alarm back
// when it moves.
//
//	motionsOf   a status → what ought to move now, each with a value and the time for which it may stand still
//	watchdog    motions over time → alarms: a pure state machine, the clock is an argument
//	watcher     the loop: one look a second; also makes events of alarms that come and go
//
//	            seen for the first time, moved          stands still for its limit
//	  (none) ─────────────────────────────► moving ─────────────────────────────► stuck (alarm)
//	     ▲                                   │  ▲                                    │ │
//	     └── not named any more ─────────────┘  └───────────── moved ────────────────┘ │
//	     └─────────────────────────────── not named any more ──────────────────────────┘

// way says what counts as moving.
type way uint8

const (
	wayChanges way = iota
	wayRises       // one that begins anew, below, has not moved by that
	wayFalls       // below all that was seen
)

// motion is something that ought to move.
type motion struct {
	alarm, subject string // together its name
	value          uint64
	way            way
	limit          time.Duration
	reason, next   string // reason goes on: "… for 1m0s"
}

// watchdogMultiples of Config.Watchdog are the limits; what the operator has set to last long is added.
const (
	resyncLimit   = 1.0
	catchUpLimit  = 2.0
	connectLimit  = 1.0
	applierLimit  = 1.0
	handoverLimit = 1.0
	writerLimit   = 0.25
	verifyLimit   = 2.0
)

// motionsOf names what ought to move in this state. c says how patient to be; nothing is watched without Config.Watchdog.
func motionsOf(st *Status, c *Config) (all []motion) {
	if c.Watchdog <= 0 {
		return nil
	}
	patience := func(multiple float64, more time.Duration) time.Duration {
		return time.Duration(float64(c.Watchdog)*multiple) + more
	}
	if passing[st.State] {
		all = append(all, motion{
			alarm: "handover-stuck", subject: st.State, value: uint64(st.Since.UnixNano()), limit: patience(handoverLimit, 2*c.StartWait),
			reason: fmt.Sprintf("%q ought to pass and has not: %s", st.State, st.Reason), next: st.NextStep,
		})
	}
	for i := range st.Followers {
		all = append(all, followerMotions(&st.Followers[i], c, patience)...)
	}
	if s := st.Source; s != nil && s.Resync != nil {
		all = append(all, resyncMotion("from "+s.Peer, s.Resync, patience))
	}
	switch st.State { // these say already that nothing goes on, and why
	case "failed", "fenced", stateDamaged, stateDeviceFull, stateDeviceError:
		return all
	}
	if m, ok := applierMotion(st, c, patience); ok {
		all = append(all, m)
	}
	if n := st.Log.WritersWaiting; n > 0 {
		all = append(all, writerMotion(st, n, patience(writerLimit, c.PushBack)))
	}
	if v := st.Verify; v != nil && v.State == VerifyRunning {
		all = append(all, motion{
			alarm: "verify-stuck", subject: v.Target, value: uint64(v.DoneBytes), way: wayRises, limit: patience(verifyLimit, 0),
			reason: fmt.Sprintf("the verify of %s stands at %s", v.Target, humanize.IBytes(uint64(v.DoneBytes))),
			next:   "look at the disks of both hosts; mirror-agent verify --stop ends it",
		})
	}
	return all
}

type patience func(multiple float64, more time.Duration) time.Duration

func followerMotions(f *FollowerStatus, c *Config, limit patience) (all []motion) {
	switch FollowerState(f.State) {
	case FollowerResync:
		if f.Resync != nil {
			all = append(all, resyncMotion("of "+f.Target, f.Resync, limit))
		}
	case FollowerCatchUp:
		all = append(all, motion{
			alarm: "catch-up-stuck", subject: f.Target, value: f.LagBytes, way: wayFalls, limit: limit(catchUpLimit, 0),
			reason: fmt.Sprintf("%s reads from the log what it missed and comes no nearer, %s behind", f.Target, humanize.IBytes(f.LagBytes)),
			next:   "its disk or the links are slower than what is written here: mirror-agent status shows the paths; --compress, a higher --bandwidth, or --on-full wait",
		})
	case FollowerConnecting, FollowerHandshake:
		all = append(all, motion{
			alarm: "connecting-long", subject: f.Target, value: uint64(f.Since.UnixNano()), limit: limit(connectLimit, 3*c.UnreachableAfter),
			reason: fmt.Sprintf("%s is %s%s", f.Target, f.State, reasonSuffix(f.Reason)),
			next:   "is the agent there started, does a firewall let its port through, does it know this host's key? mirror-agent doctor asks",
		})
	case FollowerIdle, FollowerStreaming, FollowerDown, FollowerRefused, FollowerSuspended:
	}
	return all
}

func resyncMotion(subject string, p *Progress, limit patience) motion {
	return motion{
		alarm: "resync-stuck", subject: subject, value: uint64(p.DoneBytes) + uint64(p.SentBytes), way: wayRises, limit: limit(resyncLimit, 0),
		reason: fmt.Sprintf("the resync %s stands at %s of %s", subject, humanize.IBytes(uint64(p.DoneBytes)), humanize.IBytes(uint64(p.TotalBytes))),
		next:   "look at the links and at both hosts' disks; mirror-agent path reset makes a path anew; what is copied is not lost",
	}
}

// applierMotion: what is committed ought to reach the backing device, unless it is retained.
func applierMotion(st *Status, c *Config, limit patience) (motion, bool) {
	l := &st.Log
	resync := st.Source != nil && st.Source.Resync != nil
	kept := c.RetainBytes > 0 && l.Committed-min(l.Committed, l.Applied) <= uint64(c.RetainBytes)
	if resync || kept || l.Committed <= l.Applied {
		return motion{}, false
	}
	return motion{
		alarm: "applier-stuck", value: l.Applied, limit: limit(applierLimit, 2*c.RetainTime),
		reason: fmt.Sprintf("%s of the log are committed and do not reach %s", humanize.IBytes(l.Committed-l.Applied), st.Device.Path),
		next:   "does its disk hang? dmesg, iostat; writes go on until the log is full",
	}, true
}

// writerMotion: writers wait, so the log ought to grow.
func writerMotion(st *Status, n int, limit time.Duration) motion {
	m := motion{
		alarm: "writers-wait", value: st.Log.Head, limit: limit,
		reason: humanize.Comma(int64(n)) + " writers wait and nothing is written",
		next:   "mirror-agent status shows what the log waits for",
	}
	if n == 1 {
		m.reason = "a writer waits and nothing is written"
	}
	switch {
	case st.Log.PinnedBytes > st.Log.SizeBytes/4*3:
		m.reason += fmt.Sprintf(": %d %% of the log are held", st.Log.PinnedBytes*100/max(st.Log.SizeBytes, 1))
		m.next = "by a follower: mirror-agent suspend lets writers go on without it; by the device: look at its disk"
	case st.State == "degraded" && st.OnLoss == string(OnLossFreeze):
		m.reason += ": no target counts (on-loss: freeze)"
		m.next = "bring a target back, mirror-agent switch backup, or restart with --on-loss continue"
	case st.Mode == string(ModeReceive) || st.Mode == string(ModeDurable):
		m.reason += ": the target does not answer (mode " + st.Mode + ")"
		m.next = "look at the target and its links; mirror-agent mode flush lets writers go on"
	}
	return m
}

// watchdog remembers when each motion was last seen to move. The zero value is ready.
type watchdog struct{ seen map[string]*stillness }

type stillness struct {
	value uint64
	since time.Time
}

// look takes what ought to move now and returns what does not, sorted by name.
func (w *watchdog) look(now time.Time, motions []motion) (alarms []Alarm) {
	next := make(map[string]*stillness, len(motions))
	for _, m := range motions {
		key := m.alarm + "\x00" + m.subject
		s := w.seen[key]
		switch {
		case s == nil:
			s = &stillness{m.value, now}
		case m.way == wayChanges && m.value != s.value, m.way == wayRises && m.value > s.value, m.way == wayFalls && m.value < s.value:
			s.value, s.since = m.value, now
		case m.way == wayRises:
			s.value = m.value
		}
		next[key] = s
		if still := now.Sub(s.since); still >= m.limit {
			alarms = append(alarms, Alarm{Name: m.alarm, Since: s.since, Reason: fmt.Sprintf("%s, for %s", m.reason, still.Round(time.Second)), NextStep: m.next})
		}
	}
	w.seen = next
	slices.SortStableFunc(alarms, func(a, b Alarm) int { return strings.Compare(a.Name, b.Name) })
	return alarms
}

// alarmNews compares the names of alarms: which there are for the first time, each with an alarm that says why, and which are gone.
func alarmNews(before map[string]bool, now []Alarm) (raised []Alarm, cleared []string, after map[string]bool) {
	after = map[string]bool{}
	for _, a := range now {
		if !before[a.Name] && !after[a.Name] {
			raised = append(raised, a)
		}
		after[a.Name] = true
	}
	for name := range before {
		if !after[name] {
			cleared = append(cleared, name)
		}
	}
	slices.Sort(cleared)
	return raised, cleared, after
}

// watcher looks once a second.
type watcher struct {
	config *Config
	status func() Status
	stuck  func([]Alarm) // what the status has from now on
	event  func(kind, target, format string, args ...any)
}

const watchEvery = time.Second

func (w *watcher) run(ctx context.Context) {
	var dog watchdog
	var known map[string]bool
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		st := w.status()
		w.stuck(dog.look(time.Now(), motionsOf(&st, w.config)))
		var raised []Alarm
		var cleared []string
		raised, cleared, known = alarmNews(known, st.Alarms)
		for _, a := range raised {
			w.event(eventAlarm, "", "%s: %s", a.Name, a.Reason)
		}
		for _, name := range cleared {
			w.event(eventAlarmOver, "", "%s", name)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

const (
	eventAlarm     = "alarm-raised"
	eventAlarmOver = "alarm-cleared"
)

// watchOver runs beside the agent until ctx is done.
func (a *Agent) watchOver(ctx context.Context) {
	w := watcher{config: &a.c, status: a.Status, event: a.event, stuck: func(x []Alarm) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.stuck = x
	}}
	w.run(ctx)
}
