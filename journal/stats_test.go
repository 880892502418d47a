package journal

import (
	"sync"
	"testing"
)

// Every value lies in the bucket whose end is the first one not below it, and quantiles are as near as they claim.
func TestStats(t *testing.T) {
	l, _ := newLogFile(t, MinSize+8<<20, Options{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				if err := l.Append([]*Entry{write(0, make([]byte, 1000)), {Op: OpTrim, Length: 1}}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := l.Append([]*Entry{write(0, make([]byte, l.Capacity()-Reserve))}); err == nil {
		t.Fatal("it fitted")
	}
	for range 3 {
		if err := l.WriteAnchor(nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Append([]*Entry{write(0, []byte("a"))}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Sync(l.Head()); err != nil {
		t.Fatal(err)
	}
	s := l.Stats()
	if s.Appends != 401 || s.Records != 801 || s.Bytes != uint64(l.Head()) || s.Anchors != 3 {
		t.Errorf("%d appends, %d records, %d bytes of %d, %d anchors", s.Appends, s.Records, s.Bytes, l.Head(), s.Anchors)
	}
	if s.GroupRecords.Sum != s.Records || s.GroupBytes.Sum != s.Bytes || s.GroupRecords.Count != s.GroupBytes.Count || s.GroupRecords.Count > s.Appends {
		t.Errorf("groups: %d with %d records, %d bytes", s.GroupRecords.Count, s.GroupRecords.Sum, s.GroupBytes.Sum)
	}
	if s.AppendTime.Count != s.Appends || s.SyncTime.Count != 4 || s.AppendTime.Quantile(1) == 0 {
		t.Errorf("%d append times, %d syncs", s.AppendTime.Count, s.SyncTime.Count)
	}
	raw := make([]byte, 8<<10)
	n, err := l.ReadRaw(0, raw)
	if err != nil {
		t.Fatal(err)
	}
	target, _ := newLogFile(t, MinSize, Options{})
	if _, err := target.AppendRaw(0, raw[:n]); err != nil {
		t.Fatal(err)
	}
	if s := target.Stats(); s.Appends != 1 || s.Bytes != uint64(n) || s.AppendTime.Count != 1 || s.GroupRecords.Count != 1 {
		t.Errorf("raw: %d appends, %d bytes", s.Appends, s.Bytes)
	}
}

// Counting allocates nothing.
func TestStatsAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates; the suite without it counts")
	}
	var c counters
	if n := testing.AllocsPerRun(100, func() { c.group(3, 4096); c.appendTime.Observe(5); c.appends.Add(1) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
