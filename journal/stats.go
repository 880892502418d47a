package journal

import (
	"sync/atomic"
	"time"

	"mirror-agent/blockdev/histogram"
)

// Stats is what a Log has done since it was opened. Times are in nanoseconds.
type Stats struct {
	Appends uint64 // calls of Append and AppendRaw that wrote
	Records uint64
	Bytes   uint64 // of records, as they lie in the ring
	Anchors uint64

	GroupRecords histogram.Snapshot // records of one write to the file
	GroupBytes   histogram.Snapshot
	AppendTime   histogram.Snapshot // from the call to the return, of those that wrote: waiting for the lead is in it
	SyncTime     histogram.Snapshot // one fdatasync each, those for anchors too
}

// counters is fed while the log works: atomic additions, no lock, no allocation.
type counters struct {
	appends, records, bytes, anchors               atomic.Uint64
	groupRecords, groupBytes, appendTime, syncTime histogram.Recorder
}

// Stats may be called at any time. It copies some kilobytes and stops nobody; the numbers are of about one moment.
func (l *Log) Stats() Stats {
	c := &l.counters
	return Stats{
		Appends: c.appends.Load(), Records: c.records.Load(), Bytes: c.bytes.Load(), Anchors: c.anchors.Load(),
		GroupRecords: c.groupRecords.Snapshot(), GroupBytes: c.groupBytes.Snapshot(),
		AppendTime: c.appendTime.Snapshot(), SyncTime: c.syncTime.Snapshot(),
	}
}

func (c *counters) appended(began time.Time) {
	c.appends.Add(1)
	c.appendTime.Observe(uint64(time.Since(began)))
}

func (c *counters) group(records int, bytes LSN) {
	c.records.Add(uint64(records))
	c.bytes.Add(uint64(bytes))
	c.groupRecords.Observe(uint64(records))
	c.groupBytes.Observe(uint64(bytes))
}

// syncFile is fdatasync, counted.
func (l *Log) syncFile() error {
	began := time.Now()
	err := l.ring.Load().f.Sync()
	l.counters.syncTime.Observe(uint64(time.Since(began)))
	return err
}
