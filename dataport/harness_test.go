package dataport_test

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"mirror-agent/dataport"
)

func TestMain(m *testing.M) {
	flag.Parse()
	checks := "150"
	if raceEnabled || testing.Short() {
		checks = "40"
	}
	// How often each model is checked: MIRROR_AGENT_RAPID=10000 for long runs, or -rapid.checks.
	if n := os.Getenv("MIRROR_AGENT_RAPID"); n != "" {
		checks = n
	}
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "rapid.checks" })
	if !given {
		if err := flag.Set("rapid.checks", checks); err != nil {
			panic(err)
		}
	}
	goleak.VerifyTestMain(m)
}

// ledger is one side's account of a stream: how many messages and a hash over all of them in order.
type ledger struct {
	count int
	sum   uint64
}

func (l *ledger) add(b []byte) {
	var x [16]byte
	binary.LittleEndian.PutUint64(x[:], l.sum)
	binary.LittleEndian.PutUint64(x[8:], xxhash.Sum64(b))
	l.sum = xxhash.Sum64(x[:])
	l.count++
}

// recorder is a Client that keeps what it is told.
type recorder struct {
	mu      sync.Mutex
	cond    *sync.Cond
	events  []dataport.Event
	got     map[dataport.SessionID]*ledger
	last    *dataport.Session
	onMsg   func(context.Context, dataport.Message) ([]byte, error)
	onEvent func(dataport.Event)
}

func newRecorder() *recorder {
	r := &recorder{got: map[dataport.SessionID]*ledger{}}
	r.cond = sync.NewCond(&r.mu)
	return r
}

func (r *recorder) OnMessage(ctx context.Context, m dataport.Message) ([]byte, error) {
	r.mu.Lock()
	l := r.got[m.Session.ID()]
	if l == nil {
		l = &ledger{}
		r.got[m.Session.ID()] = l
	}
	l.add(m.Payload)
	r.last = m.Session
	f := r.onMsg
	r.cond.Broadcast()
	r.mu.Unlock()
	if f != nil {
		return f(ctx, m)
	}
	if m.Call {
		return append([]byte("re:"), m.Payload...), nil
	}
	return nil, nil
}

func (r *recorder) OnEvent(e dataport.Event) {
	r.mu.Lock()
	r.events = append(r.events, e)
	f := r.onEvent
	r.cond.Broadcast()
	r.mu.Unlock()
	if f != nil {
		f(e)
	}
}

// await waits until ok, which is asked with the recorder's mutex held.
func (r *recorder) await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	over := false
	timer := time.AfterFunc(20*time.Second, func() {
		r.mu.Lock()
		over = true
		r.cond.Broadcast()
		r.mu.Unlock()
	})
	defer timer.Stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	for !ok() {
		if over {
			t.Fatalf("waited in vain for %s; events:\n%s", what, r.list())
		}
		r.cond.Wait()
	}
}

func (r *recorder) list() string {
	var b strings.Builder
	for _, e := range r.events {
		fmt.Fprintf(&b, "  %s %s\n", e.Time.Format("05.000"), e)
	}
	return b.String()
}

// awaitEvent waits for the n-th event of a kind and returns it.
func (r *recorder) awaitEvent(t testing.TB, k dataport.EventKind, n int) (found dataport.Event) {
	t.Helper()
	r.await(t, fmt.Sprintf("%v number %d", k, n), func() bool {
		seen := 0
		for _, e := range r.events {
			if e.Kind == k {
				if seen++; seen == n {
					found = e
					return true
				}
			}
		}
		return false
	})
	return found
}

func (r *recorder) lastSession() *dataport.Session {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

func (r *recorder) kinds(skip ...dataport.EventKind) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var l []string
next:
	for _, e := range r.events {
		for _, k := range skip {
			if e.Kind == k {
				continue next
			}
		}
		l = append(l, e.Kind.String())
	}
	return strings.Join(l, " ")
}

func (r *recorder) ledgerOf(id dataport.SessionID) ledger {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := r.got[id]; l != nil {
		return *l
	}
	return ledger{}
}

// quick are thresholds for tests: an eighth of the time, yet well above what a busy machine does to a goroutine.
func quick() dataport.Timing {
	return dataport.Timing{
		Heartbeat: 20 * time.Millisecond, SuspectAfter: 150 * time.Millisecond, PathDownAfter: 400 * time.Millisecond,
		UnreachableAfter: 900 * time.Millisecond, HandshakeTimeout: time.Second,
		BackoffMin: 20 * time.Millisecond, BackoffMax: 100 * time.Millisecond,
	}
}

func config(name string, listen ...string) dataport.Config {
	c := dataport.DefaultConfig()
	c.Name, c.Listen, c.Insecure, c.Timing = name, listen, true, quick()
	if os.Getenv("DATAPORT_TEST_LOG") != "" {
		c.Log = zerolog.New(zerolog.NewConsoleWriter()).With().Str("node", name).Timestamp().Logger()
	}
	return c
}

func node(t testing.TB, c dataport.Config) *dataport.Node {
	t.Helper()
	n, err := dataport.NewNode(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return n
}

func register(t testing.TB, n *dataport.Node, c dataport.Client) *dataport.Registration {
	t.Helper()
	r, err := n.Register("test", c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func open(t testing.TB, r *dataport.Registration, c dataport.PortConfig) *dataport.Port {
	t.Helper()
	p, err := r.Open(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// pattern is message i of a stream: its number and a length and content that follow from it.
func pattern(i, size int) []byte {
	b := make([]byte, max(size, 8))
	binary.LittleEndian.PutUint64(b, uint64(i))
	for j := 8; j < len(b); j++ {
		b[j] = byte(i*7 + j*3)
	}
	return b
}

type sender interface {
	Send(ctx context.Context, parts ...[]byte) (*dataport.Receipt, error)
}

// stream sends n messages of mixed sizes and waits for all receipts; it returns what should have arrived.
func stream(t testing.TB, s sender, n int) ledger {
	t.Helper()
	return streamFrom(t, s, n, ledger{})
}

// streamFrom goes on with the ledger l.
func streamFrom(t testing.TB, s sender, n int, l ledger) ledger {
	t.Helper()
	sizes := []int{8, 100, 3000, 70_000, 20, 300_000, 512, 1_100_000}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	type open struct {
		r *dataport.Receipt
		b []byte
	}
	var queue []open
	for i := range n {
		b := pattern(i, sizes[i%len(sizes)])
		l.add(b)
		cut := len(b) / 3
		r, err := s.Send(ctx, b[:cut], nil, b[cut:])
		if err != nil {
			t.Errorf("send %d: %v", i, err)
			return l
		}
		queue = append(queue, open{r, b})
		for len(queue) > 0 && (len(queue) > 24 || i == n-1) {
			if err := queue[0].r.Wait(ctx); err != nil {
				t.Errorf("receipt %d: %v", i+1-len(queue), err)
				return l
			}
			clear(queue[0].b) // ours again: a port that still reads it sends nonsense, and races
			queue = queue[1:]
		}
	}
	return l
}

func pub(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }
