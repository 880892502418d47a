package dataport_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"mirror-agent/dataport"
	"mirror-agent/dataport/dataporttest"
)

// A port with three backups, of which not the next one answers but the one after it: it goes there one by one, by itself
// or as it is told, stays when the others return, and stops at the last.
func TestDownTheList(t *testing.T) {
	for name, mode := range map[string]dataport.SwitchMode{"auto": dataport.Auto, "manual": dataport.Manual} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network, source := dataporttest.NewNet(), newWitness()
				var targets [][]string
				for i := range 4 {
					addr := fmt.Sprintf("target%d:1", i)
					targets = append(targets, []string{addr})
					register(t, node(t, memConfig(network, addr, addr)), newWitness())
				}
				r := register(t, node(t, memConfig(network, "source")), source)
				p := open(t, r, dataport.PortConfig{Target: targets[0], Backups: targets[1:], Switch: mode})
				next := func(want error) {
					t.Helper()
					if mode == dataport.Auto {
						return
					}
					if err := p.Switch(context.Background(), -1); !errors.Is(err, want) {
						t.Errorf("switch to the next: %v, want %v", err, want)
					}
				}
				expect := func(at int, want string) {
					t.Helper()
					time.Sleep(20 * time.Second)
					if got := source.journey(); got != want {
						t.Errorf("events: %s\nwant: %s", got, want)
					}
					if i, addr := p.Target(); i != at || addr != targets[at][0] {
						t.Errorf("the port is on target %d, %s, want %d", i, addr, at)
					}
					source.change(func(l *witness) { l.events = nil })
				}
				dead := func(i int) { network.Blackhole(targets[i][0], dataporttest.Both) }
				expect(0, "SessionUp(target0)")
				dead(1)
				dead(0)
				if mode == dataport.Auto {
					expect(2, "SessionDown(target0) TargetUnreachable(target0) Switching(target1) TargetUnreachable(target1) Switching(target2) Switched(target2) SessionUp(target2)")
				} else {
					expect(0, "SessionDown(target0) TargetUnreachable(target0)")
					next(nil)
					expect(1, "Switching(target1) TargetUnreachable(target1)")
					next(nil)
					expect(2, "Switching(target2) Switched(target2) SessionUp(target2)")
				}
				network.Blackhole(targets[0][0], 0)
				network.Blackhole(targets[1][0], 0)
				expect(2, "")
				dead(2)
				down := "SessionDown(target2) TargetUnreachable(target2)"
				if mode == dataport.Manual {
					expect(2, down)
					down = ""
				}
				next(nil)
				expect(3, strings.TrimSpace(down+" Switching(target3) Switched(target3) SessionUp(target3)"))
				dead(3)
				expect(3, "SessionDown(target3) TargetUnreachable(target3)")
				next(dataport.ErrUnknownTarget)
				expect(3, "")
			})
		})
	}
}

// journey lists the events that are not about paths, with their targets.
func (l *witness) journey() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var s []string
	for _, e := range l.events {
		if e.Path == 0 {
			s = append(s, fmt.Sprintf("%v(%s)", e.Kind, strings.TrimSuffix(e.Target, ":1")))
		}
	}
	return strings.Join(s, " ")
}
