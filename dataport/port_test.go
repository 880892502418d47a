package dataport_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"mirror-agent/dataport"
)

func TestFirstLight(t *testing.T) {
	target, source := newRecorder(), newRecorder()
	tn := node(t, config("target", "127.0.0.1:0", "127.0.0.1:0"))
	register(t, tn, target)
	sr := register(t, node(t, config("source")), source)
	p := open(t, sr, dataport.PortConfig{Target: tn.Addrs()})
	source.awaitEvent(t, dataport.PathUp, 2)
	want := stream(t, p, 200)
	if got := target.ledgerOf(p.Session().ID()); got != want {
		t.Fatalf("target got %+v, sent %+v", got, want)
	}
	reply, err := p.Call(context.Background(), []byte("hello, "), []byte("there"))
	if err != nil || string(reply) != "re:hello, there" {
		t.Fatalf("call: %q, %v", reply, err)
	}
	// The other direction, on the same session.
	back := stream(t, target.lastSession(), 100)
	if got := source.ledgerOf(p.Session().ID()); got != back {
		t.Fatalf("source got %+v, sent %+v", got, back)
	}
	if got := source.kinds(); got != "PathUp SessionUp PathUp" {
		t.Fatalf("events %s", got)
	}
	if s := p.State(); s != dataport.PortConnected {
		t.Fatalf("state %v", s)
	}
	_ = p.Close()
	target.awaitEvent(t, dataport.SessionDown, 1)
	source.awaitEvent(t, dataport.PortClosed, 1)
	if got := source.kinds(); got != "PathUp SessionUp PathUp SessionDown PortClosed" {
		t.Fatalf("events %s", got)
	}
	if _, err := p.Send(context.Background(), []byte("x")); !errors.Is(err, dataport.ErrClosed) {
		t.Fatalf("send on a closed port: %v", err)
	}
}

func TestTLS(t *testing.T) {
	a, _ := dataport.GenerateKey()
	b, _ := dataport.GenerateKey()
	tc, sc := config("target", "127.0.0.1:0", "127.0.0.1:0"), config("source")
	tc.Insecure, sc.Insecure = false, false
	tc.Key, sc.Key = a, b
	tc.Peers = append(tc.Peers, pub(b))
	sc.Peers = append(sc.Peers, pub(a))
	target, source := newRecorder(), newRecorder()
	tn := node(t, tc)
	register(t, tn, target)
	p := open(t, register(t, node(t, sc), source), dataport.PortConfig{Target: tn.Addrs()})
	source.awaitEvent(t, dataport.PathUp, 2)
	want := stream(t, p, 200)
	if got := target.ledgerOf(p.Session().ID()); got != want {
		t.Fatalf("target got %+v, sent %+v", got, want)
	}
	if k := p.Session().Peer().Key; k != dataport.FormatPublicKey(pub(a)) {
		t.Fatalf("peer key %s", k)
	}
}

func TestWrongKey(t *testing.T) {
	a, _ := dataport.GenerateKey()
	b, _ := dataport.GenerateKey()
	other, _ := dataport.GenerateKey()
	for _, row := range []struct {
		name, reason string
		knowsTarget  bool
	}{
		{"target is an impostor", "presented key " + dataport.FormatPublicKey(pub(a)) + ", expected one of " + dataport.FormatPublicKey(pub(other)), false},
		{"target does not know us", "does not accept our key", true},
	} {
		t.Run(row.name, func(t *testing.T) {
			tc, sc := config("target", "127.0.0.1:0"), config("source")
			tc.Insecure, sc.Insecure = false, false
			tc.Key, sc.Key = a, b
			tc.Peers = append(tc.Peers, pub(other))
			sc.Peers = append(sc.Peers, pub(other))
			if row.knowsTarget {
				sc.Peers[0] = pub(a)
			}
			source := newRecorder()
			tn := node(t, tc)
			register(t, tn, newRecorder())
			p := open(t, register(t, node(t, sc), source), dataport.PortConfig{Target: tn.Addrs()})
			e := source.awaitEvent(t, dataport.PeerRefused, 1)
			if !strings.Contains(e.Reason, row.reason) {
				t.Fatalf("reason %q, want it to say %q", e.Reason, row.reason)
			}
			source.awaitEvent(t, dataport.TargetUnreachable, 1)
			if got := source.kinds(); got != "PeerRefused TargetUnreachable" {
				t.Fatalf("events %s", got)
			}
			if _, err := p.Send(context.Background(), []byte("x")); !errors.Is(err, dataport.ErrNotConnected) {
				t.Fatalf("send: %v", err)
			}
		})
	}
}

func TestRemoteErrorAndLimits(t *testing.T) {
	target, source := newRecorder(), newRecorder()
	target.onMsg = func(_ context.Context, m dataport.Message) ([]byte, error) {
		if string(m.Payload) == "bad" {
			return nil, errors.New("no such block")
		}
		return m.Payload, nil
	}
	tc := config("target", "127.0.0.1:0")
	tc.MaxMessageBytes = 1 << 20
	tn := node(t, tc)
	register(t, tn, target)
	p := open(t, register(t, node(t, config("source")), source), dataport.PortConfig{Target: tn.Addrs()})
	source.awaitEvent(t, dataport.SessionUp, 1)
	var remote *dataport.RemoteError
	if _, err := p.Call(context.Background(), []byte("bad")); !errors.As(err, &remote) || remote.Text != "no such block" {
		t.Fatalf("call: %v", err)
	}
	if r, err := p.Call(context.Background()); err != nil || len(r) != 0 {
		t.Fatalf("empty call: %q %v", r, err)
	}
	if _, err := p.Send(context.Background(), make([]byte, 1<<20+1)); !errors.Is(err, dataport.ErrMessageTooBig) {
		t.Fatalf("too big: %v", err)
	}
	big := pattern(1, 1<<20)
	if r, err := p.Call(context.Background(), big); err != nil || string(r) != string(big) {
		t.Fatalf("largest call: %d bytes, %v", len(r), err)
	}
}

func TestSwitchIsRefusedWithAReason(t *testing.T) {
	source := newRecorder()
	p := open(t, register(t, node(t, config("source")), source), dataport.PortConfig{Target: []string{"127.0.0.1:1"}})
	for to, want := range map[int]error{-1: dataport.ErrUnknownTarget, 7: dataport.ErrUnknownTarget, 0: dataport.ErrAlreadyCurrent} {
		if err := p.Switch(context.Background(), to); !errors.Is(err, want) {
			t.Errorf("switch to %d: %v, want %v", to, err, want)
		}
	}
	start := time.Now()
	e := source.awaitEvent(t, dataport.TargetUnreachable, 1)
	if !strings.Contains(e.Reason, "refused") {
		t.Errorf("reason %q does not say what happened", e.Reason)
	}
	if d := time.Since(start); d > 3*quick().UnreachableAfter {
		t.Errorf("unreachable after %v", d)
	}
}

func TestReceiptMeansConsumed(t *testing.T) {
	target, source := newRecorder(), newRecorder()
	release := make(chan struct{})
	target.onMsg = func(context.Context, dataport.Message) ([]byte, error) { <-release; return nil, nil }
	tn := node(t, config("target", "127.0.0.1:0"))
	register(t, tn, target)
	p := open(t, register(t, node(t, config("source")), source), dataport.PortConfig{Target: tn.Addrs()})
	source.awaitEvent(t, dataport.SessionUp, 1)
	first, _ := p.Send(context.Background(), []byte("one"))
	second, _ := p.Send(context.Background(), []byte("two"))
	target.await(t, "the first message", func() bool { return target.last != nil })
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := first.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("the receipt is done before OnMessage returned: %v", err)
	}
	release <- struct{}{}
	if err := first.Wait(context.Background()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-second.Done():
		t.Fatal("the second receipt is done with the first")
	default:
	}
	close(release)
	if err := second.Wait(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func TestSendBlocksWhileTheWindowIsFull(t *testing.T) {
	target, source := newRecorder(), newRecorder()
	release := make(chan struct{})
	target.onMsg = func(context.Context, dataport.Message) ([]byte, error) { <-release; return nil, nil }
	tn := node(t, config("target", "127.0.0.1:0"))
	register(t, tn, target)
	sc := config("source")
	sc.SendWindowBytes = 64 << 10
	p := open(t, register(t, node(t, sc), source), dataport.PortConfig{Target: tn.Addrs()})
	source.awaitEvent(t, dataport.SessionUp, 1)
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	sent := 0
	for ; ; sent++ {
		if _, err := p.Send(ctx, make([]byte, 16<<10-300)); err != nil {
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
			break
		}
	}
	if sent != 4 {
		t.Errorf("%d messages of 16 KiB went into a window of 64 KiB", sent)
	}
	close(release)
	if want := stream(t, p, 20); target.ledgerOf(p.Session().ID()).count != want.count+sent {
		t.Errorf("the message given up by its sender was sent")
	}
}

func TestSuspendAndPaths(t *testing.T) {
	target, source := newRecorder(), newRecorder()
	tn := node(t, config("target", "127.0.0.1:0", "127.0.0.1:0"))
	register(t, tn, target)
	p := open(t, register(t, node(t, config("source")), source), dataport.PortConfig{Target: tn.Addrs()[:1], UseAnnounced: true})
	source.awaitEvent(t, dataport.PathUp, 2) // the second address was announced
	if err := errors.Join(p.Suspend(), p.Suspend()); err != nil || p.State() != dataport.PortSuspended {
		t.Fatalf("suspend: %v, %v", err, p.State())
	}
	r, err := p.Send(context.Background(), []byte("held"))
	if err != nil {
		t.Fatal(err)
	}
	id, err := p.AddPath("127.0.0.1", tn.Addrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	source.awaitEvent(t, dataport.PathUp, 3)
	if err := p.RemovePath(1); err != nil {
		t.Fatal(err)
	}
	if err := p.RemovePath(99); !errors.Is(err, dataport.ErrUnknownPath) {
		t.Fatalf("remove 99: %v", err)
	}
	source.awaitEvent(t, dataport.PathDown, 1)
	select {
	case <-r.Done():
		t.Fatal("a suspended port sent")
	default:
	}
	if err := p.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := r.Wait(context.Background()); err != nil {
		t.Fatal(err)
	}
	paths := p.Stats().Paths
	if len(paths) != 2 || paths[1].ID != id {
		t.Fatalf("paths %+v", paths)
	}
	_ = stream(t, p, 50)
	if got := source.kinds(); got != "PathUp SessionUp PathUp Suspended PathUp PathIsDraining PathDown Resumed" {
		t.Errorf("events %s", got)
	}
}
