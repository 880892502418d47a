package drill

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"mirror-agent/mirror"
)

// fakeMirror is a host of a mirror, and what the other one would do. Where the lead is decides what it says.
type fakeMirror struct {
	mu      sync.Mutex // guards all below
	home    bool       // this host is home
	leads   bool       // this host leads
	active  string     // of a switch-over
	backup  string     // state of the backup
	hot     bool
	clients int
	head    uint64
	writes  uint64
	alarms  []mirror.Alarm
	lead    func(*mirror.LeadStatus)
	fail    map[string]error // by the order's first word; taken once
	deaf    map[string]bool  // the order is carried out, and its answer lost
	orders  []string
	idle    bool // the last promotion was ordered so
}

func (f *fakeMirror) Status(context.Context) (mirror.Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	st := mirror.Status{Name: "vol0", Node: "fra2", Role: "secondary", State: "streaming", Home: f.home, Alarms: f.alarms, OnLoss: "continue"}
	st.NBD = mirror.FrontStats{Address: "unix:/front", Connections: f.clients, Writes: f.writes}
	if f.home {
		st.Node = "nyc1"
	}
	if !f.leads {
		st.Source = &mirror.SourceStatus{Connected: true}
		return st, nil
	}
	st.Role, st.State = "primary", "in sync"
	if f.active == "" {
		st.Followers = []mirror.FollowerStatus{{Target: "other", State: "streaming", Active: true, Durable: f.head}}
		return st, nil
	}
	st.ActiveTarget = f.active
	st.Followers = []mirror.FollowerStatus{
		{Target: "t:1", State: "streaming", Active: f.active == "t:1", Durable: f.head},
		{Target: "b:1", State: f.backup, Active: f.active == "b:1", Durable: f.head, Hot: f.hot},
	}
	return st, nil
}

func (f *fakeMirror) Hold(context.Context, mirror.DrillOptions) (Hold, error) {
	return nil, errors.New("a view was asked for")
}

// do is an order: refused, or carried out, and perhaps not answered.
func (f *fakeMirror) do(order string, carry func()) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.orders = append(f.orders, order)
	word, _, _ := strings.Cut(order, " ")
	if err := f.fail[word]; err != nil {
		delete(f.fail, word)
		return err
	}
	carry()
	if f.deaf[word] {
		delete(f.deaf, word)
		return errors.New("no answer")
	}
	return nil
}

func (f *fakeMirror) Switch(_ context.Context, to string) (mirror.Status, error) {
	return mirror.Status{}, f.do("switch "+to, func() {
		f.active = to
		if to == "b:1" {
			f.backup = "streaming"
		}
	})
}

func (f *fakeMirror) leadNow() *mirror.LeadStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := &mirror.LeadStatus{Node: "nyc1", Home: true, Active: true, Clients: f.clients, State: "in sync"}
	if f.home {
		l.Node, l.Home = "fra2", false
	}
	if f.lead != nil {
		f.lead(l)
	}
	return l
}

func (f *fakeMirror) Promote(_ context.Context, o mirror.PromoteOptions) (mirror.PromoteResult, error) {
	if !o.Planned {
		return mirror.PromoteResult{}, errors.New("not planned")
	}
	if o.DryRun {
		return mirror.PromoteResult{Lead: f.leadNow()}, nil
	}
	if o.Idle && f.clients > 0 {
		return mirror.PromoteResult{}, errors.New("refused: nyc1 has clients")
	}
	f.idle = o.Idle
	r := mirror.PromoteResult{Generation: "2.0", LSN: 8192, HandedLSN: 8192, NBD: "unix:/front", Seconds: 0.25}
	return r, f.do("promote", func() { f.leads = true })
}

func (f *fakeMirror) Failback(_ context.Context, o mirror.FailbackOptions) (mirror.FailbackResult, error) {
	f.mu.Lock()
	leads := f.leads
	f.mu.Unlock()
	r := mirror.FailbackResult{Home: "nyc1", Primary: "fra2", Ready: true, LSN: 9000, HandedLSN: 9000, NBD: "unix:/front", Seconds: 0.5}
	switch {
	case o.To != "":
		return r, f.do("failback to "+o.To, func() { f.leads = false })
	case leads == f.home:
		return r, errors.New("refused: nyc1 is home and is primary already")
	case o.DryRun:
		return r, nil
	}
	return r, f.do("failback", func() { f.leads = f.home })
}

func (f *fakeMirror) CreateCheckpoint(_ context.Context, name string) (mirror.Checkpoint, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.leads {
		return mirror.Checkpoint{}, errors.New("not the one that leads")
	}
	p := mirror.Checkpoint{Name: name, LSN: f.head}
	f.head += 64
	return p, nil
}

func (f *fakeMirror) runner() *Runner {
	return &Runner{
		Agent: f, Mirror: f, Self: "/nonexistent", URI: func(address string, _ bool) string { return "nbd:" + address },
		FirstRead: func(context.Context, string, string) error { return f.do("read", func() {}) },
	}
}

func aMove(t *testing.T, kind Kind, change func(*Config)) *Config {
	t.Helper()
	c := &Config{Kind: kind, Moves: Moves{Wait: 10 * time.Second, Back: 10 * time.Second}}
	c.Checks = []Check{{Name: "see", Run: `test "$MIRROR_AGENT_DRILL_URI" = nbd:unix:/front && test "$MIRROR_AGENT_DRILL_KIND" = ` + string(kind)}}
	if change != nil {
		change(c)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestMoves: each kind goes there and comes back, whatever ends it; what it ordered is in order.
func TestMoves(t *testing.T) {
	broken := func(c *Config) { c.Checks = []Check{{Run: "false"}} }
	aTarget := func() *fakeMirror { return &fakeMirror{head: 4096} }
	aSource := func() *fakeMirror {
		return &fakeMirror{head: 4096, home: true, leads: true, active: "t:1", backup: "streaming", hot: true}
	}
	aLead := func() *fakeMirror { return &fakeMirror{head: 4096, leads: true} }
	anOldHome := func() *fakeMirror { return &fakeMirror{head: 4096, home: true} }
	for _, c := range []struct {
		name   string
		kind   Kind
		host   *fakeMirror
		with   func(*Config)
		result Result
		reason string
		orders string
		rto    bool
	}{
		{"switch-over", SwitchOver, aSource(), nil, Passed, "", "switch b:1,switch t:1", false},
		{"switch-over, a check fails", SwitchOver, aSource(), broken, Failed, "false: exit status 1", "switch b:1,switch t:1", false},
		{"switch-over, refused", SwitchOver, with(aSource(), func(f *fakeMirror) { f.fail = map[string]error{"switch": errors.New("busy")} }), nil, Failed, "busy", "switch b:1", false},
		{"switch-over, no answer", SwitchOver, with(aSource(), func(f *fakeMirror) { f.deaf = map[string]bool{"switch": true} }), nil, Failed, "no answer", "switch b:1,switch t:1", false},
		{"switch-over, cold", SwitchOver, with(aSource(), func(f *fakeMirror) { f.backup, f.hot = "idle", false }), func(c *Config) { c.Cold = true }, Passed, "", "switch b:1,switch t:1", false},
		{"switch-over, too late", SwitchOver, aSource(), func(c *Config) { c.Timeout, c.Checks = 3*time.Second, []Check{{Run: "sleep 1000"}} }, Failed, "not done after 3s", "switch b:1,switch t:1", false},
		{"failover", Failover, aTarget(), nil, Passed, "", "promote,read,failback", true},
		{"failover, a check fails", Failover, aTarget(), broken, Failed, "exit status 1", "promote,read,failback", true},
		{"failover, refused", Failover, with(aTarget(), func(f *fakeMirror) { f.fail = map[string]error{"promote": errors.New("refused: busy")} }), nil, Failed, "busy", "promote", false},
		{"failover, no answer", Failover, with(aTarget(), func(f *fakeMirror) { f.deaf = map[string]bool{"promote": true} }), nil, Failed, "no answer", "promote,failback", false},
		{"failover, nothing is read", Failover, with(aTarget(), func(f *fakeMirror) { f.fail = map[string]error{"read": errors.New("EIO")} }), nil, Failed, "EIO", "promote,read,failback", false},
		{"failover, failback refused at first", Failover, with(aTarget(), func(f *fakeMirror) { f.fail = map[string]error{"failback": errors.New("not yet")} }), nil, Passed, "", "promote,read,failback,failback", true},
		{"failover with clients", Failover, with(aTarget(), func(f *fakeMirror) { f.clients = 2 }), func(c *Config) { c.WithClients = true }, Passed, "", "promote,read,failback", true},
		{"failback at home", Failback, anOldHome(), nil, Passed, "", "failback,read", true},
		{"failback at home, a check fails", Failback, anOldHome(), broken, Failed, "exit status 1", "failback,read,failback to fra2", true},
		{"failback on the other host", Failback, aLead(), func(c *Config) { c.Checks = nil }, Passed, "", "failback", false},
		{"failback on the other host, a check fails", Failback, aLead(), broken, Failed, "exit status 1", "failback,promote", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := c.host
			before, leads := f.active, f.leads
			p, err := f.runner().Prepare(t.Context(), aMove(t, c.kind, c.with))
			if err != nil {
				t.Fatal(err)
			}
			if len(f.orders) > 0 || len(p.Lines) < 4 || p.Killed == "" {
				t.Fatalf("%+v, ordered %q", p, f.orders)
			}
			r, err := p.Run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if r.Result != c.result || !strings.Contains(r.Reason, c.reason) || (r.RTOSeconds != nil) != c.rto || strings.Join(f.orders, ",") != c.orders {
				t.Fatalf("%s %q, RTO %v, ordered %q, %v", r.Result, r.Reason, r.RTOSeconds, f.orders, names(r))
			}
			moved := c.kind == Failback && c.result == Passed
			if f.active != before || (f.leads != leads) != moved || r.Moved.Stranded || (r.Moved.BackSeconds == nil) != moved {
				t.Fatalf("left at %q, leads %t, %+v", f.active, f.leads, r.Moved)
			}
			if c.result == Passed && c.kind == Failover && (f.idle != (f.clients == 0) || r.Moved.HandoverSeconds != 0.25 || r.RPOBytes != 0 || r.Moved.ReplicationSeconds == nil) {
				t.Fatalf("%+v, %+v", r, r.Moved)
			}
		})
	}
}

func with(f *fakeMirror, change func(*fakeMirror)) *fakeMirror { change(f); return f }

// TestMoves_refused: nothing is begun, and all that is in the way is told at once.
func TestMoves_refused(t *testing.T) {
	alarm := []mirror.Alarm{{Name: "path-down", Reason: "path 2"}}
	for _, c := range []struct {
		name string
		kind Kind
		host *fakeMirror
		with func(*Config)
		want []string
	}{
		{"a target's flow", SwitchOver, &fakeMirror{}, nil, []string{"fra2 is secondary"}},
		{"cold, and an alarm", SwitchOver, &fakeMirror{leads: true, active: "t:1", backup: "idle", alarms: alarm}, nil, []string{"b:1 is cold", "say --cold", "alarm path-down on fra2"}},
		{"a backup that is down", SwitchOver, &fakeMirror{leads: true, active: "t:1", backup: "down"}, func(c *Config) { c.Cold = true }, []string{"b:1 is down"}},
		{"no such backup", SwitchOver, &fakeMirror{leads: true, active: "t:1", backup: "streaming"}, func(c *Config) { c.To = "x:1" }, []string{"no backup to move"}},
		{"where it is", SwitchOver, &fakeMirror{leads: true, active: "b:1", backup: "streaming"}, func(c *Config) { c.To = "b:1" }, []string{"flows to b:1 already"}},
		{"clients", Failover, &fakeMirror{clients: 2}, nil, []string{"nyc1 has clients (2 NBD connections)", "--with-clients"}},
		{"clients and a mount", Failover, &fakeMirror{clients: 2}, func(c *Config) { c.WithClients, c.Device = true, Kernel }, []string{"nothing is mounted here at the same time"}},
		{"alarms on both", Failover, &fakeMirror{alarms: alarm, lead: func(l *mirror.LeadStatus) { l.Alarms = []string{"log-rot: at 5"} }}, nil, []string{"alarm path-down on fra2", "alarm on nyc1: log-rot"}},
		{"the lead is away", Failover, &fakeMirror{lead: func(l *mirror.LeadStatus) { l.Home, l.Node = false, "ams1" }}, nil, []string{"ams1 leads and is not home"}},
		{"data flows elsewhere", Failover, &fakeMirror{lead: func(l *mirror.LeadStatus) { l.Active = false }}, nil, []string{"the data of nyc1 flows to another target", "mirror-agent switch on nyc1"}},
		{"this host leads", Failover, &fakeMirror{leads: true}, nil, []string{"fra2 leads already", "--kind failback"}},
		{"at home already", Failback, &fakeMirror{home: true, leads: true}, nil, []string{"is primary already"}},
		{"clients of the one that leads", Failback, &fakeMirror{leads: true, clients: 1}, nil, []string{"fra2 has clients (1"}},
		{"the same, asked at home", Failback, &fakeMirror{home: true, clients: 1}, nil, []string{"fra2 has clients (1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := c.host.runner().Prepare(t.Context(), aMove(t, c.kind, c.with))
			if err == nil || len(c.host.orders) > 0 {
				t.Fatalf("%v, ordered %q", err, c.host.orders)
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v; lacks %q", err, want)
				}
			}
		})
	}
}

// TestMoves_changed: what has changed since the plan was shown is seen before anything is moved.
func TestMoves_changed(t *testing.T) {
	f := &fakeMirror{head: 4096}
	p, err := f.runner().Prepare(t.Context(), aMove(t, Failover, nil))
	if err != nil {
		t.Fatal(err)
	}
	f.clients = 1
	r, err := p.Run(t.Context())
	if err != nil || r.Result != Failed || !strings.Contains(r.Reason, "has clients") || len(f.orders) > 0 {
		t.Fatalf("%+v: %v, ordered %q", r, err, f.orders)
	}
	if !strings.Contains(pageOf(t, r), "Nothing was moved.") {
		t.Error("the page says something else")
	}
}

// TestMoves_interrupted: the way back is gone after an interrupt too, and is told when it cannot be.
func TestMoves_interrupted(t *testing.T) {
	for _, stuck := range []bool{false, true} {
		t.Run(fmt.Sprintf("stuck %t", stuck), func(t *testing.T) {
			f := &fakeMirror{head: 4096}
			there := filepath.Join(t.TempDir(), "there")
			c := aMove(t, Failover, func(c *Config) {
				c.Checks, c.Back = []Check{{Run: "touch " + there + "; sleep 1000"}}, 10*time.Second
				if stuck {
					c.Back = 300 * time.Millisecond
				}
			})
			n := f.runner()
			if stuck {
				n.Mirror = noWayHome{f}
			}
			p, err := n.Prepare(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancelCause(t.Context())
			go func() {
				for {
					if _, err := os.Stat(there); err == nil {
						cancel(errors.New("interrupt received"))
						return
					}
					time.Sleep(time.Millisecond)
				}
			}()
			r, err := p.Run(ctx)
			if err != nil || r.Result != Interrupted || !strings.HasPrefix(r.Reason, "interrupt received") || f.leads != stuck || r.Moved.Stranded != stuck {
				t.Fatalf("%+v, %+v: %v", r, r.Moved, err)
			}
			if stuck && (!strings.Contains(r.Reason, "home is not connected") || !strings.Contains(r.Summary(), "NOT as before: mirror-agent failback")) {
				t.Fatal(r.Summary())
			}
			page := pageOf(t, r)
			way := "went from nyc1 to fra2 and back."
			if stuck {
				way = "went from nyc1 to fra2, and is not known to be back."
			}
			for _, want := range []string{"Drill of vol0, failover", "RPO, log that was missing", way} {
				if !strings.Contains(page, want) {
					t.Errorf("the page lacks %q", want)
				}
			}
			if strings.Contains(page, "Not as before") != stuck || strings.Contains(page, "Scratch") {
				t.Error("the page says something else")
			}
		})
	}
}

type noWayHome struct{ *fakeMirror }

func (noWayHome) Failback(context.Context, mirror.FailbackOptions) (mirror.FailbackResult, error) {
	return mirror.FailbackResult{}, errors.New("refused: home is not connected")
}

// TestMoves_written: clients of the source were away, and something was written.
func TestMoves_written(t *testing.T) {
	f := &fakeMirror{head: 4096, clients: 1}
	n := f.runner()
	n.FirstRead = func(context.Context, string, string) error { f.writes += 3; return nil }
	p, err := n.Prepare(t.Context(), aMove(t, Failover, func(c *Config) { c.WithClients = true }))
	if err != nil {
		t.Fatal(err)
	}
	r, err := p.Run(t.Context())
	if err != nil || r.Result != Failed || r.Moved.Written != 3 || !strings.Contains(r.Reason, "unmount it there and check it") || f.leads {
		t.Fatalf("%+v, %+v: %v", r, r.Moved, err)
	}
}

// TestMoves_missing: what is not here is counted, and fails the drill.
func TestMoves_missing(t *testing.T) {
	f := &fakeMirror{head: 4096}
	n := f.runner()
	n.Mirror = shorter{f}
	p, err := n.Prepare(t.Context(), aMove(t, Failover, nil))
	if err != nil {
		t.Fatal(err)
	}
	r, err := p.Run(t.Context())
	if err != nil || r.Result != Failed || r.RPOBytes != 192 || !strings.Contains(r.Summary(), "RPO 192 B") || f.leads {
		t.Fatalf("%+v, %+v: %v", r, r.Moved, err)
	}
}

type shorter struct{ *fakeMirror }

func (s shorter) Promote(ctx context.Context, o mirror.PromoteOptions) (mirror.PromoteResult, error) {
	r, err := s.fakeMirror.Promote(ctx, o)
	r.LSN -= min(r.LSN, 192)
	return r, err
}

func pageOf(t *testing.T, r *Report) string {
	t.Helper()
	file, err := Encode(r, aKey(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(file, []ed25519.PublicKey{public(aKey(1))}); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := WritePage(&b, r, file); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestParseConfig_kinds(t *testing.T) {
	c, err := ParseConfig([]byte("kind: failover\nlimit: 10s\nchecks: [{run: a}]\n"))
	if err != nil || c.Device != None || c.Wait != defaultWait || c.Timeout != defaultForward || c.Back != defaultBack || c.Limit != 10*time.Second {
		t.Fatalf("%+v: %v", c, err)
	}
	if c, err = ParseConfig(nil, func(c *Config) { c.Kind = Failback }); err != nil || c.Kind != Failback {
		t.Fatalf("%+v: %v", c, err)
	}
	if c, err = ParseConfig([]byte("kind: failover\nmount: /mnt\n")); err != nil || c.Device != Auto {
		t.Fatalf("%+v: %v", c, err)
	}
	for text, want := range map[string]string{
		"kind: fallback":                        "choose view, switch-over, failover or failback",
		"kind: failover\nat: lsn:5":             "at, nbd, scratch-dir and scratch-size are for a view",
		"kind: failover\nto: backup":            "to: not for kind failover",
		"kind: failback\ncold: true":            "cold: not for kind failback",
		"kind: switch-over\nwith-clients: true": "with-clients: not for kind switch-over",
		"kind: switch-over\nlimit: 5s":          "limit: not for kind switch-over",
		"kind: switch-over\nmount: /mnt":        "device, mount: not for kind switch-over",
		"kind: switch-over\nto: elsewhere":      "give backup or a target's HOST:PORT",
		"kind: failback\nback: -1s":             "back: -1s is negative",
		"wait: 5s\nchecks: [{run: a}]":          "are for the kinds that move something",
		"kind: failover\nmount: mnt":            "give a directory from /",
		"kind: failover\nchecks: [{name: a}]":   "number 1: run: give a command",
		"kind: view":                            "at least one",
	} {
		if _, err := ParseConfig([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, wanted %q", text, err, want)
		}
	}
}
