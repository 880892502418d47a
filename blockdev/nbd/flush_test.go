package nbd

import (
	"sync/atomic"
	"testing"

	"mirror-agent/blockdev"
)

// synced counts the bytes that were written and those that a sync began after.
type synced struct {
	blockdev.Device
	written, durable atomic.Int64
}

func (d *synced) WriteAt(p []byte, off int64) (int, error) {
	n, err := d.Device.WriteAt(p, off)
	d.written.Add(int64(n))
	return n, err
}

func (d *synced) Sync() error {
	n := d.written.Load()
	err := d.Device.Sync()
	d.durable.Store(n)
	return err
}

// CAN_MULTI_CONN promises that a FLUSH on one connection covers what was answered on all others.
func TestFlushCoversAllConnections(t *testing.T) {
	d := &synced{Device: blockdev.NewMemory(mib, nil)}
	_, path := start(t, Options{}, Export{Device: d})
	writer, idle := connect(t, path), connect(t, path)
	data := make([]byte, 512)
	for i := range uint64(20) {
		writer.put(request(cmdWrite, 0, i, i*512, 512, data))
		writer.expect(0, i)
		idle.put(request(cmdFlush, 0, i, 0, 0))
		idle.expect(0, i)
		if got := d.durable.Load(); got != int64(i+1)*512 {
			t.Fatalf("the flush of the other connection covers %d bytes of %d", got, (i+1)*512)
		}
	}
	// And FUA covers at least itself.
	writer.put(request(cmdWrite, cmdFlagFUA, 99, 0, 512, data))
	writer.expect(0, 99)
	if got := d.durable.Load(); got != 21*512 {
		t.Fatalf("FUA was answered with %d bytes durable of %d", got, 21*512)
	}
}
