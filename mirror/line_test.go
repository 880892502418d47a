package mirror

import (
	"fmt"
	"testing"
	"time"
)

// TestWritersWaitInLine: writes that had to wait get into the log in the order
// in which they came. The kernel's NBD client gives up on a write after a while and
// sends it again, and then writes something else there: were the first one let
// in last, it would undo that.
func TestWritersWaitInLine(t *testing.T) {
	const writers = 12
	for name, block := range map[string]func(t *testing.T, v *Volume) (release func()){
		"the log is full": func(t *testing.T, v *Volume) func() {
			h := v.newHold("somebody", v.log.Tail(), func() {})
			filler := make([]byte, 32<<10)
			for v.log.Free() >= int64(len(filler))+256 {
				if _, err := v.WriteAt(filler, 128<<10); err != nil {
					t.Fatal(err)
				}
			}
			return h.release
		},
		"the mode holds writes back": func(_ *testing.T, v *Volume) func() {
			p := newPromise(ModeFlush, OnLossFreeze, 1, 0)
			v.gate.Store(&gateBox{p})
			return func() { p.acknowledge(0, 1, 1, 1) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			for range 3 {
				v := newHost(t, RolePrimary).mustOpen(t)
				release := block(t, v)
				done := make(chan error, writers)
				for i := range writers {
					p := make([]byte, 48<<10) // none fits, and they are let in one by one
					copy(p, fmt.Sprintf("writer %02d", i))
					go func() {
						_, err := v.WriteAt(p, 0)
						done <- err
					}()
					for deadline := time.Now().Add(10 * time.Second); int(v.line.waiting.Load()) <= i; {
						if time.Now().After(deadline) {
							t.Fatalf("writer %d does not wait", i)
						}
						time.Sleep(100 * time.Microsecond)
					}
					time.Sleep(20 * time.Millisecond) // from being counted to standing in line
				}
				release()
				for range writers {
					if err := <-done; err != nil {
						t.Fatal(err)
					}
				}
				b := make([]byte, 9)
				if _, err := v.ReadAt(b, 0); err != nil || string(b) != fmt.Sprintf("writer %02d", writers-1) {
					t.Fatalf("%q wrote last, %v", b, err)
				}
				if err := v.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// Who stands in line when the volume ends gets its error.
func TestLineEndsWithTheVolume(t *testing.T) {
	v := newHost(t, RolePrimary).mustOpen(t)
	v.gate.Store(&gateBox{newPromise(ModeFlush, OnLossFreeze, 1, 0)})
	p, _ := v.gate.Load().gate.(*promise)
	done := make(chan error, 5)
	for range cap(done) {
		go func() {
			_, err := v.WriteAt(make([]byte, 4096), 0)
			done <- err
		}()
	}
	for v.line.waiting.Load() < int32(cap(done)) {
		time.Sleep(100 * time.Microsecond)
	}
	if err := v.Abort(); err != nil {
		t.Fatal(err)
	}
	p.close()
	for range cap(done) {
		if err := <-done; err == nil {
			t.Error("a write went into a volume that had ended")
		}
	}
}
