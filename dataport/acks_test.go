package dataport_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mirror-agent/dataport/dataporttest"
)

// Where either side answers what the other one says, as a source and its target do, what was consumed is told by the answer and hardly ever by a
// frame of its own, which cost each side a call and a wakeup per message. Where nobody answers it is told at once, and of several messages
// too: whoever waits for receipts does not wait for a timer.
func TestAcksRideOnMessages(t *testing.T) {
	inMemory(t, bubbleConfig{paths: 1}, func(w *bubble) {
		ctx := context.Background()
		w.all(func(a string) { w.net.Delay(a, 100*time.Microsecond) })
		var mu sync.Mutex
		count := map[byte]int{}
		w.net.Tap("target:1", dataporttest.Both, func(_ int, b []byte) {
			mu.Lock()
			defer mu.Unlock()
			for len(b) >= 104 {
				count[b[4]]++
				n := 104 + int(b[68]) + int(b[69])<<8 // the payload's length
				b = b[min(n, len(b)):]
			}
		})
		send := func(h int, n uint32) {
			w.clients[h].mu.Lock()
			s := w.clients[h].sessions[0]
			w.clients[h].mu.Unlock()
			if _, err := s.Send(ctx, numbered(uint32(h), n, 100)...); err != nil {
				t.Fatal(err)
			}
		}
		const rounds = 100
		for n := range uint32(rounds) {
			send(0, n)
			time.Sleep(150 * time.Microsecond) // it has arrived and was consumed
			send(1, n)
			time.Sleep(150 * time.Microsecond)
		}
		mu.Lock()
		data, acks := count[2], count[3]
		mu.Unlock()
		if data != 2*rounds || acks > rounds/10 {
			t.Errorf("%d messages, and %d frames of their own that acknowledge them", data, acks)
		}
		time.Sleep(time.Second)
		synctest.Wait()

		for _, messages := range []int{1, 2, 5} {
			began := time.Now()
			for range 10 {
				var wait []interface{ Wait(context.Context) error }
				for n := range messages {
					r, err := w.port.Send(ctx, numbered(7, uint32(n), 100)...)
					if err != nil {
						t.Fatal(err)
					}
					wait = append(wait, r)
				}
				for _, r := range wait {
					if err := r.Wait(ctx); err != nil {
						t.Fatal(err)
					}
				}
			}
			if took := time.Since(began); took > 10*250*time.Microsecond {
				t.Errorf("ten times %d messages one way, and their receipts, took %v at a round trip of 0.2 ms", messages, took)
			}
		}
		w.net.Tap("target:1", dataporttest.Both, nil)
	})
}
