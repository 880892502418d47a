package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"mirror-agent/mirror"
)

func readAll(r io.Reader) string {
	b, _ := io.ReadAll(r)
	return string(b)
}

func TestCommandsReachTheAgent(t *testing.T) {
	a := newFakeAgent()
	_, path := serve(t, a, nil)
	c, ctx := client(t, path), within(t)

	st, err := c.SetMode(ctx, "async")
	if err != nil || st.Mode != "async" {
		t.Fatalf("SetMode: %q, %v", st.Mode, err)
	}
	if _, err := c.Switch(ctx, "backup"); err != nil {
		t.Fatal(err)
	}
	if r, err := c.Demote(ctx, mirror.DemoteOptions{DryRun: true}); err != nil || r.From != 4096 {
		t.Fatalf("Demote: %+v, %v", r, err)
	}
	r, err := c.Promote(ctx, mirror.PromoteOptions{Force: true, NBD: "unix:/x", DryRun: true})
	if err != nil || r.Generation != "2.0" || r.LSN != 4096 || r.NBD != "unix:/x" || r.Seconds != 0.5 {
		t.Fatalf("Promote: %+v, %v", r, err)
	}
	if _, err := c.Suspend(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ResetPath(ctx, "10.1.0.9:7400", 2); err != nil {
		t.Fatal(err)
	}
	if _, err := c.RemovePath(ctx, "10.1.0.9:7400", 1); err != nil {
		t.Fatal(err)
	}
	if _, err := c.SetBandwidth(ctx, "50MB/s"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.SetBandwidth(ctx, ""); err == nil || !strings.Contains(err.Error(), "none") {
		t.Fatalf("no limit said: %v", err)
	}
	if _, err := c.ResizeLog(ctx, 64<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := c.RemoveMember(ctx, "ams1"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.RemoveMember(ctx, ""); err == nil || !strings.Contains(err.Error(), "say which") {
		t.Errorf("nobody was removed: %v", err)
	}
	if _, err := c.ResizeLog(ctx, 0); err == nil || !strings.Contains(err.Error(), "size_bytes") {
		t.Fatalf("a size of 0: %v", err)
	}
	if _, err := c.Resize(ctx, 1<<30); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Resize(ctx, -1); err == nil || !strings.Contains(err.Error(), "negative") {
		t.Fatalf("a size below 0: %v", err)
	}
	if p, err := c.CreateCheckpoint(ctx, "noon"); err != nil || p.Name != "noon" || p.LSN != 4096 {
		t.Fatalf("CreateCheckpoint: %+v, %v", p, err)
	}
	if ps, err := c.Checkpoints(ctx); err != nil || len(ps) != 1 || ps[0].Name != "noon" {
		t.Fatalf("Checkpoints: %+v, %v", ps, err)
	}
	o := mirror.VerifyOptions{Repair: "target", RateBytes: 1 << 20, NoYield: true, Direct: true}
	if r, err := c.Verify(ctx, o); err != nil || r.State != mirror.VerifyRunning || r.Options != o {
		t.Fatalf("Verify: %+v, %v", r, err)
	}
	if r, err := c.StopVerify(ctx); err != nil || r.State != mirror.VerifyStopped {
		t.Fatalf("StopVerify: %+v, %v", r, err)
	}
	if r, err := c.VerifyReport(ctx); err != nil || len(r.Differences) != 1 || r.Differences[0].Offset != 4096 {
		t.Fatalf("VerifyReport: %+v, %v", r, err)
	}
	if _, err := c.Scrub(ctx); err != nil {
		t.Fatal(err)
	}
	want := []string{"mode async", "switch backup", "demote dry=true", "promote force=true nbd=unix:/x dry=true", "suspend", "resume", "reset 10.1.0.9:7400 2", "remove 10.1.0.9:7400 1", "bandwidth 50MB/s", "log resize 67108864", "member remove ams1", "resize 1073741824", "checkpoint noon", "checkpoints", "verify {Repair:target RateBytes:1048576 NoYield:true Direct:true Resume:false}", "verify stop", "verify report", "scrub"}
	if !slices.Equal(a.orders, want) {
		t.Fatalf("orders %q, want %q", a.orders, want)
	}
}

func TestStatusHasListsNotNulls(t *testing.T) {
	a := newFakeAgent()
	_, path := serve(t, a, nil)
	reply := exchange(t, path, "GET /v1/status HTTP/1.0\r\n\r\n")
	for _, want := range []string{`"name":"vol0"`, `"alarms":[]`, `"listen":[]`, `"paths":[]`} {
		if !strings.Contains(reply, want) {
			t.Errorf("no %s in %s", want, reply)
		}
	}
	if strings.Contains(reply, "null") {
		t.Errorf("null in %s", reply)
	}
	if a.state.Followers[0].Paths != nil || a.state.Source.Paths != nil {
		t.Error("the agent's own status was changed")
	}
}

func TestErrors(t *testing.T) {
	post := func(path, body string) string {
		return fmt.Sprintf("POST %s HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
	}
	for _, tt := range []struct {
		name, request string
		refuse        error
		code          int
		want          string
	}{
		{"refused", post("/v1/promote", ""), errors.New("the source is alive"), 409, "the source is alive"},
		{"two lines become one", post("/v1/suspend", ""), errors.New("a\nb"), 409, "a; b"},
		{"unknown mode", post("/v1/mode", `{"mode":"fast"}`), nil, 400, `unknown mode`},
		{"not JSON", post("/v1/mode", `mode=fast`), nil, 400, "request body"},
		{"unknown field", post("/v1/promote", `{"farce":true}`), nil, 400, "farce"},
		{"two values", post("/v1/promote", `{} {}`), nil, 400, "more than one"},
		{"nowhere to switch", post("/v1/switch", `{}`), nil, 400, "backup"},
		{"too long", post("/v1/mode", `{"mode":"`+strings.Repeat("x", maxBodyBytes)+`"}`), nil, 413, "longer than"},
		{"wrong method", "GET /v1/mode HTTP/1.0\r\n\r\n", nil, 405, "use POST"},
		{"wrong method of two", "PUT /v1/verify HTTP/1.0\r\n\r\n", nil, 405, "use POST, GET"},
		{"verify: whose bytes", post("/v1/verify", `{"repair":"mine"}`), nil, 400, "source"},
		{"verify: negative rate", post("/v1/verify", `{"rate_bytes":-1}`), nil, 400, "negative"},
		{"unknown path", "GET /v2/status HTTP/1.0\r\n\r\n", nil, 404, "/v2/status"},
		{"bad after", "GET /v1/events?after=-1 HTTP/1.0\r\n\r\n", nil, 400, "after"},
		{"bad follow", "GET /v1/events?follow=perhaps HTTP/1.0\r\n\r\n", nil, 400, "follow"},
		{"took too long", post("/v1/resume", ""), context.DeadlineExceeded, 504, "deadline"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := newFakeAgent()
			a.refuse = tt.refuse
			_, path := serve(t, a, nil)
			reply := exchange(t, path, tt.request)
			if !strings.HasPrefix(reply, fmt.Sprintf("HTTP/1.0 %d ", tt.code)) {
				t.Errorf("want code %d, got %s", tt.code, reply)
			}
			_, body, _ := strings.Cut(reply, "\r\n\r\n")
			if !strings.HasPrefix(body, `{"error":"`) || !strings.Contains(body, tt.want) {
				t.Errorf("want an error about %q, got %s", tt.want, body)
			}
			if len(a.orders) != 0 {
				t.Errorf("the agent was ordered to %q", a.orders)
			}
		})
	}
}

func TestClientTellsRefusalFromAbsence(t *testing.T) {
	a := newFakeAgent()
	a.refuse = errors.New("no; wait")
	_, path := serve(t, a, nil)
	ctx := within(t)
	_, err := client(t, path).Suspend(ctx)
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.Code != http.StatusConflict || err.Error() != "no; wait" {
		t.Errorf("got %#v", err)
	}
	_, err = client(t, path+".gone").Status(ctx)
	if !errors.Is(err, ErrNoAgent) || !strings.Contains(err.Error(), "--control") {
		t.Errorf("got %v", err)
	}
}

func TestCommandTimeout(t *testing.T) {
	a := newFakeAgent()
	a.block = make(chan struct{})
	_, path := serve(t, a, func(o *Options) { o.CommandTimeout = time.Millisecond })
	_, err := client(t, path).Suspend(within(t))
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.Code != http.StatusGatewayTimeout {
		t.Errorf("got %v", err)
	}
}

func TestShutdownLetsCommandsFinish(t *testing.T) {
	a := newFakeAgent()
	a.block, a.entered = make(chan struct{}), make(chan struct{})
	s, path := serve(t, a, nil)
	c, ctx := client(t, path), within(t)
	answered := make(chan error, 1)
	go func() {
		_, err := c.Suspend(ctx)
		answered <- err
	}()
	<-a.entered
	down := make(chan error, 1)
	go func() { down <- s.Shutdown(ctx) }()
	<-s.stop
	close(a.block)
	if err := <-answered; err != nil {
		t.Errorf("the command in progress: %v", err)
	}
	if err := <-down; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if err := s.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown again: %v", err)
	}
	if _, err := client(t, path).Status(ctx); !errors.Is(err, ErrNoAgent) {
		t.Errorf("after Shutdown: %v", err)
	}
}

func TestConnectionsAreCapped(t *testing.T) {
	a := newFakeAgent()
	_, path := serve(t, a, func(o *Options) { o.MaxConnections = 1 })
	first, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	// The first is served, so that it surely has the only slot.
	first.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprint(first, "GET /v1/status HTTP/1.1\r\nHost: agent\r\n\r\n")
	if _, err := first.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if _, err := client(t, path).Status(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second connection was served: %v", err)
	}
	first.Close()
	if _, err := client(t, path).Status(within(t)); err != nil {
		t.Errorf("after the first has gone: %v", err)
	}
}
