package crashtest

import (
	"bytes"
	"fmt"
	"sync"
)

// op is one operation on one disk.
type op struct {
	disk        int
	sync        bool
	off, length int64
	data        []byte // nil: zeroes
}

func (o op) String() string {
	switch {
	case o.sync:
		return fmt.Sprintf("disk %d sync", o.disk)
	case o.data == nil:
		return fmt.Sprintf("disk %d zero %d+%d", o.disk, o.off, o.length)
	}
	return fmt.Sprintf("disk %d write %d+%d", o.disk, o.off, o.length)
}

// Trace is a recording of what was done to some disks, as one sequence.
type Trace struct {
	mu    sync.Mutex // guards what follows
	disks []*Disk
	ops   []op
}

// New returns an empty recording.
func New() *Trace { return &Trace{} }

// Disk adds a disk of size bytes, all zeroes and durable.
func (t *Trace) Disk(size int64) *Disk { return t.add(newImage(size), nil) }

func (t *Trace) add(now *Image, base []*page) *Disk {
	t.mu.Lock()
	defer t.mu.Unlock()
	d := &Disk{Image: now, trace: t, number: len(t.disks), base: base}
	if base == nil {
		d.base = make([]*page, len(now.pages))
	}
	t.disks = append(t.disks, d)
	return d
}

// Begin forgets what was recorded: what the disks hold now is durable.
func (t *Trace) Begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ops = nil
	for _, d := range t.disks {
		d.base = d.freeze(d.number)
	}
}

// Image returns what d held when the recording began, to be changed and rolled back at will.
func (t *Trace) Image(d *Disk) *Image {
	im := newImage(d.size)
	im.share(d.base)
	return im
}

// Len returns how many operations there are: a promise given now holds in all states with N ≥ Len.
func (t *Trace) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.ops)
}

// Disk is a disk that writes down what is done to it. It is a device and a journal's file.
type Disk struct {
	*Image
	trace  *Trace
	number int
	base   []*page // when the recording began

	// Before, when set, is called before every operation, with no lock held; data is nil for zeroes and syncs.
	Before func(sync bool, data []byte, off, length int64)
}

func (d *Disk) record(o op) error {
	if d.Before != nil {
		d.Before(o.sync, o.data, o.off, o.length)
	}
	o.disk = d.number
	d.trace.mu.Lock()
	defer d.trace.mu.Unlock()
	if !o.sync {
		if err := d.change(o.data, o.off, o.length); err != nil {
			return err
		}
	}
	d.trace.ops = append(d.trace.ops, o)
	return nil
}

// WriteAt writes p at off.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := d.record(op{off: off, length: int64(len(p)), data: bytes.Clone(p)}); err != nil {
		return 0, err
	}
	return len(p), nil
}

// WritevAt writes the buffers one after the other, as one operation.
func (d *Disk) WritevAt(bufs [][]byte, off int64) (int, error) { return d.WriteAt(join(bufs), off) }

// Zero makes the range read as zeroes.
func (d *Disk) Zero(off, length int64) error { return d.record(op{off: off, length: length}) }

// Trim makes the range read as zeroes.
func (d *Disk) Trim(off, length int64) error { return d.record(op{off: off, length: length}) }

// Sync makes what was written before durable.
func (d *Disk) Sync() error { return d.record(op{sync: true}) }
