package nbd

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestPulse: a standstill is told to who asks about a time that it lies in, before the next beat and after it, and to nobody else.
func TestPulse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPulse()
		ask := func(what string, from time.Time, want bool) {
			t.Helper()
			if got := p.stoodStill(from, time.Now()); got != want {
				t.Errorf("%s: stood still: %v, want %v", what, got, want)
			}
		}
		beats := func(n int) {
			stop, ended := make(chan struct{}), make(chan struct{})
			p.begin()
			go func() {
				defer close(ended)
				p.run(stop)
			}()
			time.Sleep(time.Duration(n)*staleAfter/2 + time.Millisecond)
			close(stop)
			<-ended
		}
		start := time.Now()
		beats(20)
		ask("a second of beats", start, false)
		before := time.Now()
		time.Sleep(2 * staleAfter)
		ask("no beat yet", time.Now(), true)
		p.beaten(time.Now())
		ask("the beat came", before, true)
		after := time.Now().Add(time.Millisecond)
		beats(20)
		ask("before it", before, true)
		ask("after it", after, false)
	})
}
