package dataport

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// What was put into a batch comes out, in order; anything else that claims to be one gives nothing at all.
func TestEachOfBatch(t *testing.T) {
	le := binary.LittleEndian
	batch := func(count uint32, rest string, lengths ...uint32) []byte {
		b := le.AppendUint32(nil, count)
		for _, l := range lengths {
			b = le.AppendUint32(b, l)
		}
		return append(b, rest...)
	}
	for name, row := range map[string]struct {
		b    []byte
		want []string
	}{
		"one":                   {batch(1, "abc", 3), []string{"abc"}},
		"empty ones":            {batch(4, "abc", 0, 2, 0, 1), []string{"", "ab", "", "c"}},
		"only an empty one":     {batch(1, "", 0), []string{""}},
		"nothing":               {nil, nil},
		"half a count":          {[]byte{1, 0}, nil},
		"none":                  {batch(0, ""), nil},
		"no room for lengths":   {batch(2, "", 0), nil},
		"a count near 4 Gi":     {batch(1<<32-1, "abc", 3), nil},
		"too short":             {batch(2, "abc", 2, 2), nil},
		"too long":              {batch(2, "abcde", 2, 2), nil},
		"lengths beyond 32 bit": {batch(3, "abc", 1<<32-1, 1<<32-1, 5), nil},
	} {
		var got []string
		n, err := eachOfBatch(row.b, func(i int, m []byte) bool {
			if i != len(got) {
				t.Errorf("%s: number %d after %d", name, i, len(got))
			}
			got = append(got, string(m))
			return true
		})
		if !slices.Equal(got, row.want) || n != len(row.want) || (err == nil) != (row.want != nil) || err != nil && !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %q, %d, %v", name, got, n, err)
		}
	}
}

func FuzzBatch(f *testing.F) {
	f.Add([]byte{2, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 'a', 'b', 'c'})
	f.Fuzz(func(t *testing.T, b []byte) {
		total, calls := 0, 0
		n, err := eachOfBatch(b, func(_ int, m []byte) bool {
			total += len(m)
			calls++
			return true
		})
		if n != calls || err == nil && 4+4*n+total != len(b) || err != nil && calls != 0 {
			t.Fatalf("%d messages, %d calls, %d bytes of %d, %v", n, calls, total, len(b), err)
		}
	})
}

// A peer whose batch makes no sense loses its session, and its client sees nothing of it.
func TestBadBatchEndsTheSession(t *testing.T) {
	n := plainNode(t, nil)
	c, id := dialHello(t, n)
	s := n.sessionsOf(nil)[0]
	body := []byte{9, 0, 0, 0, 1, 0, 0, 0}
	h := header{
		typ: frameBatch, flags: flagFirst | flagLast, session: id, client: clientID("test"), seq: 1, ack: 1, consumed: 1,
		payload: uint32(len(body)), message: uint32(len(body)), payloadHash: sumOf(body),
	}
	b := make([]byte, headerBytes)
	h.encode(b)
	if _, err := c.Write(append(b, body...)); err != nil {
		t.Fatal(err)
	}
	<-s.Done()
	if err := s.Err(); err == nil || !strings.Contains(err.Error(), "batch") {
		t.Errorf("%v", err)
	}
	if st := s.Stats(); st.MessagesReceived != 0 {
		t.Errorf("%d messages came out of it", st.MessagesReceived)
	}
}

func TestBatchLimits(t *testing.T) {
	s := &Session{maxMsg: 100}
	if _, err := s.SendBatch(context.Background()); err == nil {
		t.Error("an empty batch was taken")
	}
	for _, sizes := range [][]int{{101}, {50, 60}, {50, 39}} { // 4 + 2×4 + 89 is 101
		var msgs [][]byte
		for _, n := range sizes {
			msgs = append(msgs, make([]byte, n))
		}
		if _, err := s.SendBatch(context.Background(), msgs...); !errors.Is(err, ErrMessageTooBig) {
			t.Error(fmt.Sprint(sizes), err)
		}
	}
}
