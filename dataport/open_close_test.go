package dataport_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"

	"mirror-agent/dataport"
	"mirror-agent/dataport/dataporttest"
)

// A port that was opened while its registration closed outlived it: Close had looked which ports there are, and Open was
// not yet told that there are to be no more.
func TestOpenWhileClosing(t *testing.T) {
	var release chan struct{}
	inMemory(t, bubbleConfig{paths: 1, net: func(*dataporttest.Net) {
		release = make(chan struct{})
	}, node: func(h int, c *dataport.Config) {
		if dial := c.Dial; h == 0 {
			c.Dial = func(ctx context.Context, local, remote string) (net.Conn, error) {
				if remote == "target:9" {
					<-release
				}
				return dial(ctx, local, remote)
			}
		}
	}}, func(w *bubble) {
		ctx, r := context.Background(), w.regs[0]
		if _, err := r.Open(ctx, dataport.PortConfig{Target: []string{"target:9"}}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // it dials
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			r.Close()
		}()
		synctest.Wait() // it waits for that port
		p, err := r.Open(ctx, dataport.PortConfig{Target: w.addrs[1]})
		if !errors.Is(err, dataport.ErrClosed) {
			t.Errorf("open while closing: %v", err)
		}
		close(release)
		<-closed
		if p != nil && p.State() != dataport.PortIsClosed {
			t.Errorf("the registration is closed, a port of it is %v", p.State())
			_ = p.Close()
		}
	})
}

// The same with whatever the scheduler does, for a registration and for a node.
func TestOpenAgainstClose(t *testing.T) {
	for name, end := range map[string]func(w *bubble){
		"registration": func(w *bubble) { w.regs[0].Close() },
		"node":         func(w *bubble) { _ = w.nodes[0].Close() },
	} {
		t.Run(name, func(t *testing.T) {
			for range 20 {
				inMemory(t, bubbleConfig{paths: 1}, func(w *bubble) {
					var all sync.WaitGroup
					ports := make([]*dataport.Port, 20)
					for i := range ports {
						all.Go(func() {
							var err error
							ports[i], err = w.regs[0].Open(context.Background(), dataport.PortConfig{Target: w.addrs[1]})
							if err != nil && !errors.Is(err, dataport.ErrClosed) {
								t.Errorf("open: %v", err)
							}
						})
						if i == len(ports)/2 {
							all.Go(func() { end(w) })
						}
					}
					all.Wait()
					for i, p := range ports {
						if p != nil && p.State() != dataport.PortIsClosed {
							t.Errorf("port %d is %v", i, p.State())
							_ = p.Close()
						}
					}
				})
			}
		})
	}
}
