package page

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"mirror-agent/mirror"
)

const limit = 20 * time.Second

// heard is one message of a stream.
type heard struct{ id, kind, data string }

// follower reads a stream.
type follower struct {
	t    *testing.T
	body io.ReadCloser
	in   *bufio.Scanner
}

func follow(t *testing.T, url, last string) *follower {
	t.Helper()
	return followWith(t, url, "Last-Event-ID", last)
}

func followAs(t *testing.T, url, cookie string) *follower {
	t.Helper()
	return followWith(t, url, "Cookie", strings.TrimPrefix(cookie, "Cookie: "))
}

func followWith(t *testing.T, url, header, value string) *follower {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/v1/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	if value != "" {
		r.Header.Set(header, value)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	if answer.StatusCode != http.StatusOK || answer.Header.Get("Content-Type") != "text/event-stream" {
		b, _ := io.ReadAll(answer.Body)
		t.Fatalf("%s: %s", answer.Status, b)
	}
	t.Cleanup(func() { answer.Body.Close() })
	f := &follower{t: t, body: answer.Body, in: bufio.NewScanner(answer.Body)}
	f.in.Buffer(nil, 1<<20)
	return f
}

// next is the next message of a kind.
func (f *follower) next(kind string) heard {
	f.t.Helper()
	late := time.AfterFunc(limit, func() { f.body.Close() })
	defer late.Stop()
	var m heard
	for f.in.Scan() {
		switch key, value, _ := strings.Cut(f.in.Text(), ": "); key {
		case "id":
			m.id = value
		case "event":
			m.kind = value
		case "data":
			m.data = value
		case "":
			if m.kind == kind {
				return m
			}
			m = heard{}
		}
	}
	f.t.Fatalf("no %s: %v", kind, f.in.Err())
	return m
}

func (f *follower) event() (string, mirror.Event) {
	f.t.Helper()
	m := f.next("happened")
	var e mirror.Event
	if err := json.Unmarshal([]byte(m.data), &e); err != nil {
		f.t.Fatal(err)
	}
	return m.id, e
}

func TestStreamTells(t *testing.T) {
	a := newFakeAgent()
	a.happen(3, "long ago")
	f := follow(t, serve(t, a), "")
	var h hello
	if err := json.Unmarshal([]byte(f.next("hello").data), &h); err != nil || h.Control || h.Token != "" {
		t.Errorf("hello: %+v, %v", h, err)
	}
	if len(h.History) == 0 || h.History[0].Lag["10.1.0.9:7400"] != (lagAt{4096, 0.5}) {
		t.Errorf("history: %+v", h.History)
	}
	for want := uint64(1); want <= 3; want++ {
		if _, e := f.event(); e.Sequence != want {
			t.Fatalf("event %d, want %d", e.Sequence, want)
		}
	}
	var v view
	if err := json.Unmarshal([]byte(f.next("status").data), &v); err != nil || v.Status.State != "in sync" || v.Now.IsZero() {
		t.Errorf("status: %+v, %v", v, err)
	}
	a.happen(1, "just now\nin two lines")
	if _, e := f.event(); e.Sequence != 4 || e.Text != "just now\nin two lines" {
		t.Errorf("the new event: %+v", e)
	}
}

// TestStreamResumes: who gives the last id back gets every event after it, once.
func TestStreamResumes(t *testing.T) {
	a := newFakeAgent()
	url := serve(t, a)
	a.happen(5, "before")
	f := follow(t, url, "")
	var last string
	for range 5 {
		last, _ = f.event()
	}
	f.body.Close()
	a.happen(freshEvents+50, "meanwhile") // more than a fresh page gets
	f = follow(t, url, last)
	for want := uint64(6); want <= 5+freshEvents+50; want++ {
		if _, e := f.event(); e.Sequence != want {
			t.Fatalf("event %d after a pause, want %d", e.Sequence, want)
		}
	}

	a.mu.Lock()
	a.dropped = 100
	a.mu.Unlock()
	f = follow(t, url, run+"-90")
	if m := f.next("missed"); m.data != `{"count":10}` {
		t.Errorf("missed: %s", m.data)
	}
	if _, e := f.event(); e.Sequence != 101 {
		t.Errorf("first of those kept: %d", e.Sequence)
	}
	a.mu.Lock()
	a.dropped = 0
	a.mu.Unlock()
	// Of another run of the agent the sequence means nothing.
	f = follow(t, url, "0badc0de-90")
	if _, e := f.event(); e.Sequence != 56 {
		t.Errorf("first event of a page that knows another run: %d, want the last %d", e.Sequence, freshEvents)
	}
}

func TestStreamsAreBounded(t *testing.T) {
	url := serve(t, newFakeAgent(), func(o *Options) { o.MaxStreams = 2 })
	one := follow(t, url, "")
	follow(t, url, "")
	answer, err := http.Get(url + "/v1/stream")
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusServiceUnavailable || answer.Header.Get("Retry-After") == "" {
		t.Errorf("the third: %s", answer.Status)
	}
	one.body.Close()
	for deadline := time.Now().Add(limit); ; {
		answer, err := http.Get(url + "/v1/stream")
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode == http.StatusOK {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after one has gone: %s", answer.Status)
		}
	}
}

// TestSlowClientIsDropped: one that reads nothing loses its stream, and its place.
func TestSlowClientIsDropped(t *testing.T) {
	a := newFakeAgent()
	url := serve(t, a, func(o *Options) { o.MaxStreams, o.WriteTimeout = 1, 50*time.Millisecond })
	c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.(*net.TCPConn).SetReadBuffer(4096)
	fmt.Fprintf(c, "GET /v1/stream HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
	begins := make([]byte, len("HTTP/1.1 200"))
	if _, err := io.ReadFull(c, begins); err != nil || string(begins) != "HTTP/1.1 200" { // it has the place, and reads no more
		t.Fatalf("%q, %v", begins, err)
	}
	for deadline := time.Now().Add(limit); ; {
		a.happen(1, strings.Repeat("x", 256<<10)) // until no buffer takes any more
		answer, err := http.Get(url + "/v1/stream")
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode == http.StatusOK && len(a.events) > 4 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %d events: %s", len(a.events), answer.Status)
		}
	}
}

// TestCheckpoints: the list is kept for a moment, but not beyond the event of a new one: who asks because of it gets it.
func TestCheckpoints(t *testing.T) {
	a := newFakeAgent()
	at := serve(t, a)
	for _, want := range []string{"nightly", "nightly,noon"} {
		answer, err := http.Get(at + "/v1/checkpoints")
		if err != nil {
			t.Fatal(err)
		}
		var list []mirror.Checkpoint
		err = json.NewDecoder(answer.Body).Decode(&list)
		answer.Body.Close()
		var names []string
		for _, p := range list {
			names = append(names, p.Name)
		}
		if got := strings.Join(names, ","); err != nil || got != want {
			t.Errorf("%q, wanted %q: %v", got, want, err)
		}
		a.mark("noon")
	}
}
