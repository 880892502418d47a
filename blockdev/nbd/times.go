package nbd

import (
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"mirror-agent/blockdev/histogram"
)

// What a request takes: from the moment at which its last byte had been received to the one at which its answer is ready, so
// waiting for others of its batch is in it, the network is not. Requests answered with an error by the device count, those
// refused before do not. Both moments are known anyway but for one look at the clock per read and per group of writes.

// CommandTime is how long the requests of one kind took, in nanoseconds.
type CommandTime struct {
	Command string // read, write, flush, fua, trim, write_zeroes, cache, block_status
	Time    histogram.Snapshot
}

// timedCommand is an index into times. A write, zero or trim with FUA is of a kind of its own: it waits for a Sync.
type timedCommand int

const (
	timedRead timedCommand = iota
	timedWrite
	timedFlush
	timedFUA
	timedTrim
	timedZeroes
	timedCache
	timedStatus
	timedCommands
)

var timedNames = [timedCommands]string{"read", "write", "flush", "fua", "trim", "write_zeroes", "cache", "block_status"}

func timedAs(command uint16) timedCommand {
	switch command {
	case protocol.TRANSMISSION_TYPE_REQUEST_WRITE:
		return timedWrite
	case cmdFlush:
		return timedFlush
	case cmdTrim:
		return timedTrim
	case cmdWriteZeroes:
		return timedZeroes
	case cmdCache:
		return timedCache
	case cmdBlockStatus:
		return timedStatus
	}
	return timedRead
}

func (r syncRequest) timed() timedCommand {
	if r.fua {
		return timedFUA
	}
	return timedFlush
}

type times [timedCommands]histogram.Recorder

// observe counts n requests that took as long.
func (t *times) observe(c timedCommand, took time.Duration, n uint64) {
	if n > 0 {
		t[c].ObserveN(uint64(max(took, 0)), n)
	}
}

func (t *times) snapshot() []CommandTime {
	all := make([]CommandTime, timedCommands)
	for i := range t {
		all[i] = CommandTime{timedNames[i], t[i].Snapshot()}
	}
	return all
}
