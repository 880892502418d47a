package mirror

import (
	"bytes"
	"errors"
	"reflect"
	"testing"
)

func TestVerifyWire(t *testing.T) {
	q := verifyRequest{what: verifySums, direct: true, unit: verifyUnitBytes, number: 7, notBefore: 4096, off: 65536, end: 131072 - 512, key: [32]byte{1, 2, 3}}
	got, err := decodeVerifyRequest(q.encode())
	if err != nil || got != q {
		t.Errorf("%+v, %v", got, err)
	}
	r := verifyReply{status: verifyUnreadable, below: true, at: 8192, body: []byte("why")}
	back, err := decodeVerifyReply(r.encode())
	if err != nil || !reflect.DeepEqual(back, r) {
		t.Errorf("%+v, %v", back, err)
	}
	a := verifyAnswer{below: true, number: 9, at: 1 << 40, sums: []blockSum{{state: sumZero}, {state: sumHash, hash: [16]byte{5}}, {state: sumTouched}}}
	answer, err := decodeVerifyAnswer(a.encode())
	if err != nil || !reflect.DeepEqual(answer, a) {
		t.Errorf("%+v, %v", answer, err)
	}
	for name, change := range map[string]func(*verifyRequest){
		"nothing":         func(q *verifyRequest) { q.end = q.off },
		"too much":        func(q *verifyRequest) { q.end = q.off + maxVerifyChunk + 1 },
		"units too small": func(q *verifyRequest) { q.unit = 1 },
		"too many units":  func(q *verifyRequest) { q.unit, q.end = 512, q.off+maxVerifyChunk },
		"no such request": func(q *verifyRequest) { q.what = verifyBytes + 1 },
		"beyond any end":  func(q *verifyRequest) { q.off, q.end = -5, 3 },
	} {
		bad := q
		change(&bad)
		if got, err := decodeVerifyRequest(bad.encode()); !errors.Is(err, errMessage) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// FuzzVerifyMessages: nothing that a peer sends panics, and what is taken says the same when it is sent again.
func FuzzVerifyMessages(f *testing.F) {
	q := verifyRequest{what: verifyScan, unit: verifyBlockBytes, off: 0, end: 1 << 20}
	a := verifyAnswer{number: 1, sums: make([]blockSum, 3)}
	r := verifyReply{body: []byte("x")}
	for _, b := range [][]byte{q.encode(), a.encode(), r.encode(), nil} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if q, err := decodeVerifyRequest(b); err == nil {
			again, err := decodeVerifyRequest(q.encode())
			if err != nil || again != q || q.end <= q.off || q.off < 0 {
				t.Errorf("%+v, %+v, %v", q, again, err)
			}
		}
		if a, err := decodeVerifyAnswer(b); err == nil && !bytes.Equal(a.encode()[16:], b[16:]) {
			t.Errorf("% x", b)
		}
		_, _ = decodeVerifyReply(b)
	})
}
