package dataport_test

import (
	"sync"
	"testing"
	"time"

	"mirror-agent/dataport"
)

// TestBothSayGoodbye: both sides end a session in one moment, the source's port closes. It waited for a path without end whose
// reader had heard the peer's goodbye while its writer said its own.
func TestBothSayGoodbye(t *testing.T) {
	for range 60 {
		target, source := newRecorder(), newRecorder()
		tn := node(t, config("target", "127.0.0.1:0"))
		tr := register(t, tn, target)
		sn := node(t, config("source"))
		p := open(t, register(t, sn, source), dataport.PortConfig{Target: tn.Addrs()})
		source.awaitEvent(t, dataport.SessionUp, 1)
		target.awaitEvent(t, dataport.SessionUp, 1)
		var wg sync.WaitGroup
		wg.Go(tr.Close)
		wg.Go(func() { _ = p.Close() })
		done := make(chan struct{})
		go func() { defer close(done); wg.Wait() }()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Fatal("the port does not close")
		}
	}
}
