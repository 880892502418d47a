package control

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"mirror-agent/mirror"
)

func TestEventsAfter(t *testing.T) {
	a := newFakeAgent()
	_, path := serve(t, a, nil)
	c, ctx := client(t, path), within(t)
	if list, err := c.Events(ctx, 0); err != nil || list == nil || len(list) != 0 {
		t.Fatalf("no events: %v, %v", list, err)
	}
	a.happen("path-up")
	a.happen("path-down")
	list, err := c.Events(ctx, 1)
	if err != nil || len(list) != 1 || list[0].Kind != "path-down" {
		t.Fatalf("got %v, %v", list, err)
	}
}

func TestFollow(t *testing.T) {
	a := newFakeAgent()
	s, path := serve(t, a, nil)
	a.happen("old")
	a.happen("first")
	seen := make(chan string)
	done := make(chan error, 1)
	go func() {
		done <- client(t, path).Follow(within(t), 1, func(e mirror.Event) error {
			seen <- e.Kind
			return nil
		})
	}()
	for _, want := range []string{"first", "second", "third"} {
		if got := <-seen; got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
		switch want {
		case "first":
			a.happen("second")
		case "second":
			a.happen("third")
		}
	}
	// Shutdown must not wait for a stream that never ends by itself.
	if err := s.Shutdown(within(t)); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if err := <-done; !errors.Is(err, io.EOF) {
		t.Errorf("Follow ended with %v", err)
	}
}

func TestFollowEndsWithItsContextAndCallback(t *testing.T) {
	a := newFakeAgent()
	_, path := serve(t, a, nil)
	a.happen("one")
	c := client(t, path)
	ctx, cancel := context.WithCancel(within(t))
	err := c.Follow(ctx, 0, func(mirror.Event) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	enough := errors.New("enough")
	if err := c.Follow(within(t), 0, func(mirror.Event) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("callback: %v", err)
	}
}

// A client that asks for a stream and never reads must not keep its handler.
func TestFollowerThatDoesNotReadIsDropped(t *testing.T) {
	a := newFakeAgent()
	big := mirror.Event{Sequence: 1, Text: strings.Repeat("x", 4<<20)}
	a.events = []mirror.Event{big}
	s, path := serve(t, a, func(o *Options) { o.WriteTimeout = 2 * time.Second })
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET /v1/events?follow=true HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err != nil { // it has started
		t.Fatal(err)
	}
	if err := s.http.Shutdown(within(t)); err != nil { // not s.Shutdown, which ends streams
		t.Errorf("the stream is still held: %v", err)
	}
}
