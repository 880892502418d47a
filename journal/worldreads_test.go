package journal

import (
	"bytes"
	"errors"
	"io"
)

// appendRaw appends what another log, with this one's chain, would have sent.
func (w *world) appendRaw() {
	head, chain := w.l.HeadChain()
	var raw []byte
	for range 1 + w.rng.IntN(3) {
		e := w.entry()
		if err := e.prepare(); err != nil {
			w.t.Fatal(err)
		}
		r := e.record(head + LSN(len(raw)))
		r.Durable = w.durable
		b := make([]byte, RecordSize(len(e.Payload)))
		r.encode(b, chain)
		copy(b[HeaderSize:], e.Payload)
		raw, chain = append(raw, b...), r.Chain
	}
	if _, err := w.l.AppendRaw(head, raw); err != nil && !errors.Is(err, ErrFull) {
		w.t.Fatalf("raw: %v", err)
	}
	w.adopt()
}

// reads asks the log in every way that there is, and compares with the slice.
func (w *world) reads() {
	w.t.Helper()
	tail := w.l.Tail()
	n := len(w.recs)
	if n == 0 {
		if _, err := w.l.ReadRaw(w.l.Head(), make([]byte, 100)); err != io.EOF {
			w.t.Fatalf("read at the head: %v", err)
		}
		return
	}
	i := w.rng.IntN(n)
	r := w.recs[i]
	if chain, err := w.l.ChainAt(r.end); err != nil || chain != r.chain {
		w.t.Fatalf("chain at %d: %x, %v; want %x", r.end, chain, err, r.chain)
	}
	if _, err := w.l.ChainAt(r.at + 8); !errors.Is(err, ErrNotBoundary) {
		w.t.Fatalf("chain inside of the record at %d: %v", r.at, err)
	}
	// Any bytes of one or several records.
	j := min(i+w.rng.IntN(3), n-1)
	var all []byte
	for _, x := range w.recs[i : j+1] {
		all = append(all, x.raw...)
	}
	from := w.rng.IntN(len(all))
	p := make([]byte, 1+w.rng.IntN(len(all)-from))
	if err := w.l.ReadData(p, r.at+LSN(from)); err != nil || !bytes.Equal(p, all[from:from+len(p)]) {
		w.t.Fatalf("%d bytes at %d: %v", len(p), r.at+LSN(from), err)
	}
	if err := w.l.ReadData(make([]byte, 9), w.l.Head()-8); !errors.Is(err, ErrBeyondHead) {
		w.t.Fatalf("data past the head: %v", err)
	}
	// Whole records, as many as fit.
	buf := make([]byte, HeaderSize+w.rng.IntN(60<<10))
	var short ErrShortBuffer
	switch got, err := w.l.ReadRaw(r.at, buf); {
	case errors.As(err, &short):
		if short.Need != len(r.raw) || short.Need <= len(buf) {
			w.t.Fatalf("needs %d for a record of %d, buffer %d", short.Need, len(r.raw), len(buf))
		}
	case err != nil:
		w.t.Fatalf("raw at %d: %v", r.at, err)
	default:
		want := 0
		for k := i; k < n && want+len(w.recs[k].raw) <= len(buf); k++ {
			if end := want + len(w.recs[k].raw); end > got || !bytes.Equal(buf[want:end], w.recs[k].raw) {
				w.t.Fatalf("raw at %d: %d bytes, and not those of the records", r.at, got)
			}
			want += len(w.recs[k].raw)
		}
		if got != want {
			w.t.Fatalf("raw at %d: %d bytes, %d fit", r.at, got, want)
		}
	}
	k := i
	if err := w.l.Scan(r.at, w.recs[j].end, func(x Record) error {
		if x.LSN != w.recs[k].at || x.Chain != w.recs[k].chain {
			w.t.Fatalf("scan shows %d, want %d", x.LSN, w.recs[k].at)
		}
		k++
		return nil
	}); err != nil || k != j+1 {
		w.t.Fatalf("scan of %d records showed %d: %v", j+1-i, k-i, err)
	}
	if at, chain, err := w.l.BoundaryBefore(r.end); err != nil || at > r.end {
		w.t.Fatalf("boundary before %d: %d, %v", r.end, at, err)
	} else if want, err := w.l.ChainAt(at); err != nil || want != chain {
		w.t.Fatalf("boundary %d has chain %x, %x: %v", at, chain, want, err)
	}
	if tail >= 8 {
		if _, err := w.l.ReadRaw(tail-8, buf); !errors.Is(err, ErrGone) {
			w.t.Fatalf("read below the tail: %v", err)
		}
	}
}
