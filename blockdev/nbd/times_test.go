package nbd

import (
	"testing"
	"time"

	"mirror-agent/blockdev"
)

// slowSync is a device whose Sync takes as long as it says.
type slowSync struct {
	blockdev.Device
	takes time.Duration
}

func (d slowSync) Sync() error {
	time.Sleep(d.takes)
	return d.Device.Sync()
}

// Every request is counted once, under its command, and what waits for a Sync is seen to have waited for it.
func TestTimes(t *testing.T) {
	const takes = 20 * time.Millisecond
	s, path := start(t, Options{}, Export{Device: slowSync{blockdev.NewMemory(4*mib, nil), takes}})
	c := connect(t, path)
	cookie := uint64(0)
	do := func(command, flags uint16, length uint32, data []byte) {
		cookie++
		c.put(request(command, flags, cookie, 0, length, data))
		c.expect(0, cookie)
		if command == cmdRead {
			c.get(int(length))
		}
	}
	const large = mib // more than a connection's buffer
	for range 3 {
		do(cmdRead, 0, 512, nil)
		do(cmdWrite, 0, 512, make([]byte, 512))
	}
	do(cmdRead, 0, large, nil)
	do(cmdWrite, 0, large, make([]byte, large))
	do(cmdWrite, cmdFlagFUA, 512, make([]byte, 512))
	do(cmdWrite, cmdFlagFUA, large, make([]byte, large))
	do(cmdFlush, 0, 0, nil)
	do(cmdTrim, 0, 4096, nil)
	do(cmdWriteZeroes, 0, 4096, nil)
	do(cmdWriteZeroes, cmdFlagNoHole, 4096, nil)
	c.alive() // one read more, after whose answer all others are counted

	want := map[string]uint64{"read": 5, "write": 4, "flush": 1, "fua": 2, "trim": 1, "write_zeroes": 2, "cache": 0, "block_status": 0}
	st := s.Stats()
	if len(st.Times) != len(want) {
		t.Errorf("%d kinds of requests, want %d", len(st.Times), len(want))
	}
	for _, x := range st.Times {
		if n, ok := want[x.Command]; !ok || x.Time.Count != n {
			t.Errorf("%s: %d requests, want %d", x.Command, x.Time.Count, n)
		}
		if waits := x.Command == "flush" || x.Command == "fua"; waits && x.Time.Mean() < float64(takes) {
			t.Errorf("%s took %v ns on average, the sync alone %v", x.Command, x.Time.Mean(), takes)
		}
	}
}
