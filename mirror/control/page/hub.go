package page

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"time"

	"mirror-agent/mirror"
)

const (
	sampleEvery = time.Second
	// After an event the state is looked at once more, not before what comes with it has happened too.
	settle       = 100 * time.Millisecond
	historyEvery = 2 * time.Second
	keptHistory  = 450 // a quarter of an hour
	markAge      = 5 * time.Second
)

// view is what the stream calls status.
type view struct {
	Now    time.Time     `json:"now"`
	Status mirror.Status `json:"status"`
}

// sample is one point of the charts.
type sample struct {
	Time   int64            `json:"t"` // ms since 1970
	Lag    map[string]lagAt `json:"lag"`
	Writes float64          `json:"w"` // bytes/s into the log
}

type lagAt struct {
	Bytes uint64  `json:"b"`
	RPO   float64 `json:"s"`
}

// hub asks the agent, once for all that look on, and wakes them.
type hub struct {
	agent Agent

	mu      sync.Mutex // guards all below
	view    []byte     // as JSON
	history []sample
	more    chan struct{} // closed when there is a newer view
}

func newHub(a Agent) *hub {
	h := &hub{agent: a, more: make(chan struct{})}
	h.look()
	return h
}

// run looks at the agent until stop is closed.
func (h *hub) run(stop <-chan struct{}) {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	after := uint64(0)
	for {
		events, changed := h.agent.Events(after)
		if n := len(events); n > 0 {
			after = events[n-1].Sequence
			continue
		}
		select {
		case <-stop:
			return
		case <-tick.C:
		case <-changed:
			select {
			case <-stop:
				return
			case <-time.After(settle):
			}
		}
		h.look()
	}
}

func (h *hub) look() {
	st, now := h.agent.Status(), time.Now()
	b, err := json.Marshal(view{now, st})
	if err != nil {
		panic(err) // plain data
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.view = b
	if n := len(h.history); n == 0 || now.Sub(time.UnixMilli(h.history[n-1].Time)) >= historyEvery {
		if n == keptHistory {
			h.history = append(h.history[:0], h.history[1:]...)
		}
		h.history = append(h.history, sampleOf(&st, now))
	}
	close(h.more)
	h.more = make(chan struct{})
}

func sampleOf(st *mirror.Status, now time.Time) sample {
	s := sample{Time: now.UnixMilli(), Lag: map[string]lagAt{}, Writes: st.Log.WriteRate}
	for i := range st.Followers {
		if f := &st.Followers[i]; f.Active || f.Hot {
			s.Lag[f.Target] = lagAt{f.LagBytes, f.RPOSeconds}
		}
	}
	if src := st.Source; src != nil && src.Connected {
		s.Lag[src.Peer] = lagAt{Bytes: src.SourceHead - min(src.SourceHead, src.Durable)}
	}
	return s
}

// latest returns the newest view, and a channel that is closed when there is a newer one.
func (h *hub) latest() ([]byte, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.view, h.more
}

func (h *hub) past() []sample {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]sample{}, h.history...)
}

// checkpointCache keeps the list, which is read from the log, for a moment, or until this host has made another one.
type checkpointCache struct {
	mu   sync.Mutex // guards all below; held while the log is read
	list []mirror.Checkpoint
	err  error
	read time.Time
	seen uint64 // the last event that was looked at
}

func (c *checkpointCache) get(ctx context.Context, a Agent) ([]mirror.Checkpoint, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	events, _ := a.Events(c.seen)
	fresh := false
	for i := range events {
		c.seen = events[i].Sequence
		fresh = fresh || strings.Contains(events[i].Kind, "checkpoint")
	}
	if fresh || c.read.IsZero() || time.Since(c.read) > markAge {
		c.list, c.err = a.Checkpoints(ctx)
		c.read = time.Now()
	}
	return c.list, c.err
}
