package journal

import (
	"sync/atomic"
	"time"
)

// Stats is what a Log has done since it was opened. Times are in nanoseconds.
type Stats struct {
	Appends uint64 // calls of Append and AppendRaw that wrote
	Records uint64
	Bytes   uint64 // of records, as they lie in the ring
	Anchors uint64

	GroupRecords Histogram // records of one write to the file
	GroupBytes   Histogram
	AppendTime   Histogram // from the call to the return, of those that wrote: waiting for the lead is in it
	SyncTime     Histogram // one fdatasync each, those for anchors too
}

// counters is fed while the log works: atomic additions, no lock, no allocation.
type counters struct {
	appends, records, bytes, anchors               atomic.Uint64
	groupRecords, groupBytes, appendTime, syncTime histogram
}

// Stats may be called at any time. It copies some kilobytes and stops nobody; the numbers are of about one moment.
func (l *Log) Stats() Stats {
	c := &l.counters
	return Stats{
		Appends: c.appends.Load(), Records: c.records.Load(), Bytes: c.bytes.Load(), Anchors: c.anchors.Load(),
		GroupRecords: c.groupRecords.snapshot(), GroupBytes: c.groupBytes.snapshot(),
		AppendTime: c.appendTime.snapshot(), SyncTime: c.syncTime.snapshot(),
	}
}

func (c *counters) appended(began time.Time) {
	c.appends.Add(1)
	c.appendTime.observe(uint64(time.Since(began)))
}

func (c *counters) group(records int, bytes LSN) {
	c.records.Add(uint64(records))
	c.bytes.Add(uint64(bytes))
	c.groupRecords.observe(uint64(records))
	c.groupBytes.observe(uint64(bytes))
}

// syncFile is fdatasync, counted.
func (l *Log) syncFile() error {
	began := time.Now()
	err := l.ring.f.Sync()
	l.counters.syncTime.observe(uint64(time.Since(began)))
	return err
}
