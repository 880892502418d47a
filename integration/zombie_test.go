package integration

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestFrozenZombie: the agent stands still while a client sends a write, gives that connection up and sends the write again on another one,
// as the kernel's client does. When the agent goes on, the first copy lies in a socket whose client has hung up: it is not applied any more,
// for that could come after a later write of the same block was answered. What a client sent before it hung up for good is seen by a block of its own.
func TestFrozenZombie(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			lay := layout{insecure: true}
			if network == "tcp" {
				lay.sourceArgs = []string{"--nbd", freePort(t, "127.0.0.1")}
			}
			m := newMirror(t, lay)
			if network == "tcp" {
				m.source.nbd = lay.sourceArgs[1]
			}
			m.start()
			second := m.source.dial(startLimit)
			for round := range 10 {
				first := m.source.dial(startLimit)
				spot, old := int64(round+1)*ledgerBlock, bytes.Repeat([]byte("o"), ledgerBlock)
				if err := first.write(0, old, false); err != nil {
					t.Fatal(err)
				}
				m.source.freeze()
				eventually(t, startLimit, "the agent stands still", func() (bool, string) {
					stat := strings.TrimSpace(tail(fmt.Sprintf("/proc/%d/stat", m.source.pid()), 1<<10))
					return strings.Contains(stat, ") T "), stat
				})
				gone := make(chan error, 1)
				go func() { gone <- first.write(spot, old, false) }()
				time.Sleep(300 * time.Millisecond) // a client gives up after 1 s at the earliest
				first.conn.Close()
				if err := <-gone; err == nil {
					t.Fatal("an agent that stands still has answered")
				}
				m.source.thaw()
				again, found := bytes.Repeat([]byte("n"), ledgerBlock), make([]byte, ledgerBlock)
				if err := second.write(0, again, false); err != nil {
					t.Fatal(err)
				}
				m.source.until(startLimit, "the first connection is gone", func(s *status) bool { return s.NBD.Connections == 1 })
				if err := second.read(spot, found); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(found, make([]byte, ledgerBlock)) {
					t.Errorf("round %d: the write of a connection that was given up while the agent stood still was applied", round)
				}
			}
			second.close()
			m.stopLevel("target")
		})
	}
}
