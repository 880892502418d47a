package mirror

import (
	"bytes"
	"errors"
	"os"
	"sync"
	"testing"
)

// TestFrontEndsFirst: what the front still has when the agent ends is written, flushed
// here and on the target, and answered as ever; only then the log is closed and applied.
func TestFrontEndsFirst(t *testing.T) {
	target := newAgentNode(t, RoleSecondary).start()
	n := newAgentNode(t, RolePrimary, target).start()
	dev := n.awaitServing()
	n.awaitState("in sync")
	last := bytes.Repeat([]byte{7}, 4096)
	var drained error
	n.front.setEnding(sync.OnceFunc(func() {
		_, err := dev.WriteAt(last, 8192)
		drained = errors.Join(err, dev.Sync())
	}))
	n.stop()
	if err := <-n.done; err != nil {
		t.Error(err)
	}
	n.a = nil
	if drained != nil {
		t.Errorf("the last request got %v", drained)
	}
	target.end()
	for _, device := range []string{n.c.Device, target.c.Device} {
		if got, err := os.ReadFile(device); err != nil || !bytes.Equal(got[8192:][:4096], last) {
			t.Errorf("it is not in %s: %v", device, err)
		}
	}
}

// TestCloseTellsNoClient: a flush that waits for its target when the agent is closed gets an error; by then its
// client is gone, who would take it for the disk's.
func TestCloseTellsNoClient(t *testing.T) {
	n := newAgentNode(t, RolePrimary, newAgentNode(t, RoleSecondary).start()).start()
	n.awaitServing()
	n.awaitState("in sync")
	early := false
	n.front.setEnding(sync.OnceFunc(func() {
		p := n.a.promise
		p.mu.Lock()
		defer p.mu.Unlock()
		early = p.w.closed
	}))
	if err := n.a.Close(); err != nil {
		t.Error(err)
	}
	if early {
		t.Error("the promise was closed before the front")
	}
}
