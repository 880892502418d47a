package dataport_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"mirror-agent/dataport"
)

const fencedTarget, fencedBackup = "10.1.0.2:7000", "10.2.0.3:7001"

// fenceWorld is a source with a target and a backup in a lab, in a bubble. All of them use generations of one history.
type fenceWorld struct {
	lab                    *lab
	nodes                  []*dataport.Node
	source, target, backup *list
	sr, tr, br             *dataport.Registration
	port                   *dataport.Port
}

func newFenceWorld(t *testing.T, generation uint64) *fenceWorld {
	w := &fenceWorld{lab: newLab()}
	w.lab.set("7000", "10.1.0.2/24")
	w.lab.set("7001", "10.2.0.3/24")
	w.tr, w.target = w.node(t, "target", "7000")
	w.br, w.backup = w.node(t, "backup", "7001")
	w.sr, w.source = w.node(t, "source", "9000")
	w.sr.SetGeneration(generation)
	w.port = w.open(t, w.sr)
	time.Sleep(time.Second)
	return w
}

func (w *fenceWorld) node(t *testing.T, name, port string) (*dataport.Registration, *list) {
	n, r, l := w.lab.start(t, w.lab.config(name, port, "0.0.0.0:"+port), "test")
	w.nodes = append(w.nodes, n)
	r.SetHistory([16]byte{1})
	return r, l
}

func (w *fenceWorld) open(t *testing.T, r *dataport.Registration) *dataport.Port {
	p, err := r.Open(context.Background(), dataport.PortConfig{
		Target: []string{fencedTarget, fencedTarget}, Backups: [][]string{{fencedBackup}}, Switch: dataport.Auto,
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (w *fenceWorld) close() {
	for _, n := range w.nodes {
		_ = n.Close()
	}
}

func wantKinds(t *testing.T, who string, l *list, want string) {
	t.Helper()
	if got := strings.Join(l.kinds(), " "); got != want {
		t.Errorf("%s: events %s\nwant %s", who, got, want)
	}
}

// isFenced checks what a fenced port must not do any more.
func (w *fenceWorld) isFenced(t *testing.T, p *dataport.Port, l *list, by uint64) {
	t.Helper()
	l.mu.Lock()
	last := l.events[len(l.events)-1]
	l.mu.Unlock()
	if last.Kind != dataport.Fenced || last.Generation != by || last.Port != p || !strings.Contains(last.Reason, "higher generation") {
		t.Errorf("the last event is %v, want Fenced by %d", last, by)
	}
	if st := p.Stats(); st.State != dataport.PortFenced || st.Fenced != by || p.Session() != nil {
		t.Errorf("port is %v, fenced by %d, session %v", st.State, st.Fenced, p.Session())
	}
	if _, err := p.Send(context.Background(), []byte("x")); !errors.Is(err, dataport.ErrFenced) {
		t.Errorf("send: %v", err)
	}
	if err := p.Switch(context.Background(), -1); !errors.Is(err, dataport.ErrFenced) {
		t.Errorf("switch: %v", err)
	}
	if err := p.Suspend(); err != nil || p.State() != dataport.PortFenced {
		t.Errorf("suspended: %v, %v", p.State(), err)
	}
	if err := p.Resume(); err != nil {
		t.Error(err)
	}
	_ = w.lab.dialed()
	if _, err := p.AddPath("", "10.1.0.2:7000"); err != nil {
		t.Error(err)
	}
	time.Sleep(time.Minute)
	if d := w.lab.dialed(); len(d) != 0 {
		t.Errorf("a fenced port dials: %v", d)
	}
	l.mu.Lock()
	l.events = slices.DeleteFunc(l.events, func(e dataport.Event) bool { return e.Kind == dataport.Suspended || e.Kind == dataport.Resumed })
	l.mu.Unlock()
}

// The target raises its generation, as one that was promoted: the sessions end at once on both sides, and the old
// source learns why. The backup is not touched.
func TestTheTargetFencesItsSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newFenceWorld(t, 5)
		defer w.close()
		w.tr.SetGeneration(5) // the target follows: nothing happens
		w.tr.SetGeneration(3)
		synctest.Wait()
		s := w.port.Session()
		start := time.Now()
		w.tr.SetGeneration(7)
		synctest.Wait()
		select {
		case <-s.Done():
		default:
			t.Errorf("the session lives on")
		}
		time.Sleep(200 * time.Millisecond)
		wantKinds(t, "source", w.source, "PathUp SessionUp PathUp SessionDown Fenced")
		wantKinds(t, "target", w.target, "PathUp SessionUp PathUp SessionDown")
		if d := w.source.events[4].Time.Sub(start); d > 100*time.Millisecond {
			t.Errorf("fenced after %v", d)
		}
		w.isFenced(t, w.port, w.source, 7)
		wantKinds(t, "backup", w.backup, "")
		if own, seen := w.sr.Generation(); own != 5 || seen != 7 {
			t.Errorf("the source has generation %d and has seen %d", own, seen)
		}

		w.sr.SetGeneration(6)
		time.Sleep(time.Minute)
		w.isFenced(t, w.port, w.source, 7)
		w.sr.SetGeneration(7)
		time.Sleep(3 * time.Second)
		wantKinds(t, "source", w.source, "PathUp SessionUp PathUp SessionDown Fenced PathUp SessionUp PathUp PathUp PathUp")
		if _, err := w.port.Call(context.Background(), pattern(1, 8)); err != nil {
			t.Errorf("call with generation 7: %v", err)
		}
	})
}

// Another source with a higher generation dials the target: the old one's session ends and it is refused.
func TestAnotherSourceFencesTheOldOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newFenceWorld(t, 5)
		defer w.close()
		nr, newer := w.node(t, "newer", "9001")
		nr.SetGeneration(6)
		p := w.open(t, nr)
		time.Sleep(time.Second)
		wantKinds(t, "old source", w.source, "PathUp SessionUp PathUp SessionDown Fenced")
		w.isFenced(t, w.port, w.source, 6)
		wantKinds(t, "new source", newer, "PathUp SessionUp PathUp")
		wantKinds(t, "target", w.target, "PathUp SessionUp PathUp SessionDown PathUp SessionUp PathUp")
		if g := w.target.events[5].Session.Peer().Generation; g != 6 {
			t.Errorf("the target was told generation %d", g)
		}
		if own, seen := w.tr.Generation(); own != 0 || seen != 6 {
			t.Errorf("the target has generation %d and has seen %d", own, seen)
		}
		if st := p.State(); st != dataport.PortConnected {
			t.Errorf("new source: %v", st)
		}
	})
}

// A source raises its own generation: the session begins anew, so that the peer knows.
func TestASourceRaisesItsGeneration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newFenceWorld(t, 5)
		defer w.close()
		w.sr.SetGeneration(6)
		time.Sleep(3 * time.Second)
		wantKinds(t, "source", w.source, "PathUp SessionUp PathUp SessionDown PathUp SessionUp PathUp")
		if _, seen := w.tr.Generation(); seen != 6 {
			t.Errorf("the target has seen %d", seen)
		}
	})
}

// One that sends is dialled by a higher generation: its own port is fenced, whatever its target thinks of it.
func TestASourceIsDialledByItsSuccessor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newFenceWorld(t, 5)
		defer w.close()
		w.lab.set("9000", "10.1.0.1/24")
		nr, newer := w.node(t, "newer", "9001")
		nr.SetGeneration(6)
		if _, err := nr.Open(context.Background(), dataport.PortConfig{Target: []string{"10.1.0.1:9000"}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		wantKinds(t, "new source", newer, "PathUp SessionUp")
		wantKinds(t, "old source", w.source, "PathUp SessionUp PathUp SessionDown Fenced PathUp SessionUp")
		if st := w.port.State(); st != dataport.PortFenced {
			t.Errorf("its port is %v", st)
		}
		wantKinds(t, "target", w.target, "PathUp SessionUp PathUp SessionDown")
	})
}

// A fence is no unreachable target: a port that never had a session learns it, and does not go to the backup either.
func TestAnOldSourceStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newFenceWorld(t, 7)
		defer w.close()
		or, old := w.node(t, "old", "9001")
		or.SetGeneration(5)
		p := w.open(t, or)
		time.Sleep(time.Second)
		wantKinds(t, "old source", old, "Fenced")
		w.isFenced(t, p, old, 7)
		wantKinds(t, "old source", old, "Fenced")
		wantKinds(t, "backup", w.backup, "")
		wantKinds(t, "source", w.source, "PathUp SessionUp PathUp") // it is not concerned
	})
}

// Generations of another history, and none at all, are not compared.
func TestWhatIsNotCompared(t *testing.T) {
	for name, change := range map[string]func(r *dataport.Registration){
		"another history": func(r *dataport.Registration) { r.SetHistory([16]byte{2}); r.SetGeneration(5) },
		"no generation":   func(*dataport.Registration) {},
		"set back by another history": func(r *dataport.Registration) {
			r.SetGeneration(9)
			r.SetHistory([16]byte{2})
			r.SetHistory([16]byte{1})
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newFenceWorld(t, 7)
				defer w.close()
				r, l := w.node(t, "other", "9001")
				change(r)
				w.open(t, r)
				time.Sleep(time.Second)
				w.tr.SetGeneration(7)
				time.Sleep(time.Second)
				wantKinds(t, "other", l, "PathUp SessionUp PathUp")
				wantKinds(t, "source", w.source, "PathUp SessionUp PathUp")
			})
		})
	}
}

// A target that a source dials with generations set only after the session began.
func TestGenerationsComeLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newFenceWorld(t, 0)
		defer w.close()
		w.tr.SetGeneration(4)
		time.Sleep(time.Second)
		wantKinds(t, "source", w.source, "PathUp SessionUp PathUp")
		w.sr.SetGeneration(3)
		time.Sleep(3 * time.Second)
		wantKinds(t, "source", w.source, "PathUp SessionUp PathUp SessionDown Fenced")
		w.sr.SetHistory([16]byte{9}) // it is another mirror's by now
		time.Sleep(3 * time.Second)
		wantKinds(t, "source", w.source, "PathUp SessionUp PathUp SessionDown Fenced PathUp SessionUp PathUp")
	})
}

// Callbacks may raise the generation, and close what is fenced.
func TestRaiseInACallback(t *testing.T) {
	target, source := newRecorder(), newRecorder()
	tn := node(t, calm(config("target", "127.0.0.1:0")))
	tr := register(t, tn, target)
	tr.SetGeneration(9)
	sr := register(t, node(t, calm(config("source"))), source)
	sr.SetGeneration(2)
	source.onEvent = func(e dataport.Event) {
		if e.Kind == dataport.Fenced {
			sr.SetGeneration(e.Generation)
		}
	}
	p := open(t, sr, dataport.PortConfig{Target: tn.Addrs()})
	source.awaitEvent(t, dataport.SessionUp, 1)
	target.mu.Lock()
	target.onEvent = func(e dataport.Event) {
		if e.Kind == dataport.PathDown || e.Kind == dataport.SessionDown {
			tr.SetGeneration(12)
		}
	}
	target.mu.Unlock()
	if err := p.ResetPath(1); err != nil {
		t.Fatal(err)
	}
	source.awaitEvent(t, dataport.Fenced, 2)
	source.awaitEvent(t, dataport.SessionUp, 2)
	if got := source.kinds(dataport.PathUp, dataport.PathDown, dataport.PathSuspect); got != "Fenced SessionUp SessionDown Fenced SessionUp" {
		t.Errorf("events %s", got)
	}
	_ = p.Close()
	source.awaitEvent(t, dataport.PortClosed, 1)
}
