package journal

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"
)

// readAll reads an excerpt and returns its payloads as far as they are good.
func readExcerpt(b []byte) (x *ExcerptReader, records []Record, payloads [][]byte, err error) {
	x, err = ReadExcerpt(bytes.NewReader(b))
	for err == nil {
		var r Record
		var p []byte
		if r, p, err = x.Next(); err == nil {
			records, payloads = append(records, r), append(payloads, slices.Clone(p))
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return x, records, payloads, err
}

func excerptOfLog(t *testing.T) (l *Log, f *memFile, at []LSN, want [][]byte) {
	t.Helper()
	l, f = newLogFile(t, MinSize, Options{})
	t.Cleanup(func() { _ = l.Close() })
	for i := range 12 {
		e := write(uint64(i)*8192, bytes.Repeat([]byte{byte(i + 1)}, 100*i+1))
		if i%5 == 4 {
			e = &Entry{Op: OpTrim, Offset: 4096, Length: 8192}
		}
		if err := l.Append([]*Entry{e}); err != nil {
			t.Fatal(err)
		}
		at, want = append(at, e.LSN), append(want, e.Payload)
	}
	return l, f, append(at, l.Head()), want
}

// An excerpt gives back what the log had between two boundaries, whichever they are.
func TestExcerpt(t *testing.T) {
	l, _, at, want := excerptOfLog(t)
	for i := range at {
		for j := i; j < len(at); j++ {
			var b bytes.Buffer
			n, err := l.WriteExcerpt(&b, Excerpt{Mirror: "m", Name: "vol", Node: "host", DeviceSize: 1 << 20, From: at[i], To: at[j], Reason: "test"})
			if err != nil || n != uint64(j-i) {
				t.Fatalf("%d to %d: %d records, %v", i, j, n, err)
			}
			x, records, payloads, err := readExcerpt(b.Bytes())
			if err != nil || len(records) != j-i || x.Name != "vol" || x.From != at[i] || x.To != at[j] {
				t.Fatalf("%d to %d: %d records read, %+v, %v", i, j, len(records), x.Excerpt, err)
			}
			for k, p := range payloads {
				if !bytes.Equal(p, want[i+k]) || records[k].LSN != at[i+k] {
					t.Fatalf("record %d differs", i+k)
				}
			}
		}
	}
	if _, err := l.WriteExcerpt(io.Discard, Excerpt{From: at[0], To: at[1] + 8}); !errors.Is(err, ErrChain) {
		t.Errorf("an end within a record: %v", err)
	}
	if _, err := l.WriteExcerpt(io.Discard, Excerpt{From: at[0] + 8, To: at[1]}); err == nil {
		t.Error("a beginning within a record was accepted")
	}
}

// An excerpt that was cut or changed anywhere is never taken for a whole one, and gives no record that was not in it.
func TestExcerptDamaged(t *testing.T) {
	l, _, at, want := excerptOfLog(t)
	var b bytes.Buffer
	if _, err := l.WriteExcerpt(&b, Excerpt{Mirror: "m", From: at[3], To: at[9]}); err != nil {
		t.Fatal(err)
	}
	check := func(what string, i int, damaged []byte) {
		_, records, payloads, err := readExcerpt(damaged)
		if err == nil {
			t.Fatalf("%s at %d: not noticed", what, i)
		}
		for k := range records {
			if records[k].LSN != at[3+k] || !bytes.Equal(payloads[k], want[3+k]) {
				t.Fatalf("%s at %d: record %d is wrong", what, i, k)
			}
		}
	}
	for i := range b.Bytes() {
		check("cut", i, b.Bytes()[:i])
		damaged := slices.Clone(b.Bytes())
		damaged[i] ^= 0x10
		check("changed", i, damaged)
	}
	check("longer", b.Len(), append(slices.Clone(b.Bytes()), 0))
}

// Rot in the log ends the excerpt with its place; what was written before it can be read.
func TestExcerptOfRot(t *testing.T) {
	l, f, at, _ := excerptOfLog(t)
	f.data[l.ring.Load().offset(at[6])+HeaderSize+3] ^= 1
	var b bytes.Buffer
	_, err := l.WriteExcerpt(&b, Excerpt{From: at[2], To: at[10]})
	var rot *CorruptError
	if !errors.As(err, &rot) || rot.LSN != at[6] {
		t.Fatalf("%v, want rot at LSN %d", err, at[6])
	}
	_, records, _, err := readExcerpt(b.Bytes())
	if !errors.Is(err, ErrTruncated) || len(records) != 4 {
		t.Errorf("%d records, %v", len(records), err)
	}
}
