package dataport_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"mirror-agent/dataport"
)

// TestTargetProcess is the target of TestThaw in a process of its own: it prints its address and then its events.
func TestTargetProcess(t *testing.T) {
	if os.Getenv("DATAPORT_TEST_TARGET") == "" {
		t.Skip("runs as a child of TestThaw only")
	}
	c := config("target", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0")
	c.Timing = thawTiming()
	n := node(t, c)
	r := newRecorder()
	r.onEvent = func(e dataport.Event) { fmt.Printf("event %v\n", e) }
	r.onMsg = func(ctx context.Context, m dataport.Message) ([]byte, error) {
		if m.Call {
			return nil, nil
		}
		_, err := m.Session.Send(ctx, append([]byte(nil), m.Payload...)) // it all goes back
		return nil, err
	}
	register(t, n, r)
	fmt.Printf("addrs %s\n", strings.Join(n.Addrs(), ","))
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n') // until the parent has seen enough
}

// thawTiming makes the thresholds of tests wide enough for a process that stands still on a busy machine.
func thawTiming() dataport.Timing {
	t := dataport.DefaultTiming()
	t.SuspectAfter, t.PathDownAfter, t.UnreachableAfter = 300*time.Millisecond, 4*time.Second, 8*time.Second
	return t
}

// TestThaw stops a process and lets it go on, many times, with traffic in both directions. The side that ran suspects
// the other's paths, with reason, and hears them again once. The side that stood still finds everything that was said
// meanwhile in its sockets, "I hear nothing of you" included: it raises no alarm of its own.
func TestThaw(t *testing.T) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestTargetProcess$", "-test.count=1", "-test.timeout=80s")
	cmd.Env = append(os.Environ(), "DATAPORT_TEST_TARGET=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || !strings.HasPrefix(lines.Text(), "addrs ") {
		t.Fatalf("the child says %q", lines.Text())
	}
	addrs := strings.Split(strings.TrimPrefix(lines.Text(), "addrs "), ",")
	var told []string
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines.Scan() {
			if e, ok := strings.CutPrefix(lines.Text(), "event "); ok {
				told = append(told, e)
			}
		}
	}()

	source := newRecorder()
	sc := config("source")
	sc.Timing = thawTiming()
	p := open(t, register(t, node(t, sc), source), dataport.PortConfig{Target: addrs})
	source.awaitEvent(t, dataport.PathUp, 3)
	stop := make(chan struct{})
	sent := make(chan int)
	go func() { // a steady load, so that the stopped side has much to read
		n := 0
		for {
			select {
			case <-stop:
				sent <- n
				return
			default:
			}
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			if _, err := p.Send(ctx, pattern(n, 20_000)); err != nil {
				t.Errorf("send: %v", err)
			}
			cancel()
			n++
			time.Sleep(2 * time.Millisecond)
		}
	}()
	const rounds = 5
	for i := range rounds {
		// Stopped shorter than the target's own path threshold, longer than what makes the source suspect.
		if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		source.awaitEvent(t, dataport.PathSuspect, 3*(i+1))
		if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		source.awaitEvent(t, dataport.PathUp, 3+3*(i+1))
		time.Sleep(200 * time.Millisecond) // what is late gets the time to come
	}
	close(stop)
	n := <-sent
	if _, err := p.Call(context.Background(), []byte("all is well")); err != nil {
		t.Fatal(err)
	}
	source.await(t, "everything to come back", func() bool { return source.got[p.Session().ID()].count == n })
	_ = in.Close()
	<-read
	if err := cmd.Wait(); err != nil {
		t.Errorf("the child: %v", err)
	}
	for _, e := range told {
		if strings.HasPrefix(e, "PathSuspect") || strings.HasPrefix(e, "PathDown") {
			t.Errorf("the side that stood still: %v", e)
		}
	}
	source.mu.Lock()
	defer source.mu.Unlock()
	for id := dataport.PathID(1); id <= 3; id++ { // of each path; they go one after the other
		var kinds []string
		for _, e := range source.events {
			if e.Path == id {
				kinds = append(kinds, e.Kind.String())
			}
		}
		if got, want := strings.Join(kinds, " "), "PathUp"+strings.Repeat(" PathSuspect PathUp", rounds); got != want {
			t.Errorf("the side that ran, path %d: %s\n%s", id, got, source.list())
		}
	}
}
