package dataport_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"

	"mirror-agent/dataport"
)

// Batches, messages and calls of one goroutine come in their order, one by one, over two paths of which one is cut again
// and again; packed or not. A batch's receipt is done when its last message has been taken.
func TestSendBatch(t *testing.T) {
	for _, packing := range []dataport.Compression{dataport.CompressNone, dataport.CompressS2} {
		source, target := newRecorder(), newRecorder()
		tn := node(t, config("target", "127.0.0.1:0", "127.0.0.1:0"))
		register(t, tn, target)
		var mu sync.Mutex
		next, index := 0, map[uint64]int{}
		target.onMsg = func(_ context.Context, m dataport.Message) ([]byte, error) {
			mu.Lock()
			defer mu.Unlock()
			next++
			if m.Index != index[m.Seq] {
				t.Errorf("message %d of a batch came as number %d", m.Index, index[m.Seq])
			}
			index[m.Seq]++
			return nil, nil
		}
		p := open(t, register(t, node(t, config("source")), source), dataport.PortConfig{Target: tn.Addrs(), Compression: packing})
		source.awaitEvent(t, dataport.PathUp, 2)
		s := p.Session()
		var sent ledger
		for round := range 60 {
			var msgs [][]byte
			for i := range 1 + round*3%70 {
				msgs = append(msgs, pattern(round*100+i, round*i*37%9000))
			}
			r, err := p.SendBatch(t.Context(), msgs...)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range msgs {
				sent.add(m)
			}
			b := pattern(round, 100)
			if _, err := p.Call(t.Context(), b); err != nil {
				t.Fatal(err)
			}
			sent.add(b)
			if round%10 == 5 {
				if err := p.ResetPath(dataport.PathID(1 + round/10%2)); err != nil {
					t.Fatal(err)
				}
			}
			if err := r.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			mu.Lock()
			if next != sent.count {
				t.Errorf("round %d: receipt with %d messages taken of %d", round, next, sent.count)
			}
			mu.Unlock()
		}
		if got := target.ledgerOf(s.ID()); got != sent {
			t.Errorf("target got %+v, sent %+v", got, sent)
		}
		if st := s.Stats(); st.MessagesSent != uint64(sent.count) || st.QueuedBytes != 0 {
			t.Errorf("%+v", st)
		}
	}
}

// A client that had closed in the middle of a batch was handed the rest of it, of a session that was gone.
func TestBatchStopsWhenTheSessionEnds(t *testing.T) {
	inMemory(t, bubbleConfig{paths: 1}, func(w *bubble) {
		taken := 0
		p := w.between(nil, func(context.Context, dataport.Message) ([]byte, error) {
			if taken++; taken == 2 {
				_ = w.nodes[1].Close()
			}
			return nil, nil
		})
		r, err := p.SendBatch(w.t.Context(), []byte("a"), []byte("b"), []byte("c"), []byte("d"))
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Wait(w.t.Context()); !errors.Is(err, dataport.ErrSessionLost) {
			t.Errorf("receipt: %v", err)
		}
		synctest.Wait()
		if taken != 2 {
			t.Errorf("%d messages were handed over, want 2", taken)
		}
	})
}
