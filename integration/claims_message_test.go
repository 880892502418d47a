package integration

import (
	"bytes"
	"testing"
)

// claimMessages: Send returns when the message is queued and its receipt
// completes later; Call returns with what the other side's handler says.
func claimMessages(t *testing.T, _ *plays) {
	x := newTrio(t, 2, 0)
	x.source.open(x.settings())
	x.source.untilPaths(2)

	// In mid-stream the other side takes nothing any more: messages are accepted all the same, and no receipt completes
	// of what it has not taken, though it has arrived.
	x.target.do(portOrder{Do: "stall", On: true, To: 200})
	x.source.load(loadSettings{Stream: streamForth, Count: 2000, Size: 4 << 10})
	x.target.untilHanded(0, 200)
	queued := x.source.until(portLimit, "all sent while the receiver takes nothing", func(v *portView) bool { return v.Sent == 2000 })
	taken := x.target.view().Handed
	if taken != 200 || queued.Queued < int(2000-taken)*4<<10 {
		t.Errorf("%d messages were taken, and only %d bytes of 2000 messages count as not consumed", taken, queued.Queued)
	}
	x.source.load(loadSettings{Stream: streamCalls, Kind: "call", Count: 1, Size: 100})
	if err := x.source.try(portOrder{Do: "settled", Client: "vol", Within: 0}, nil); err == nil {
		t.Error("receipts and a call completed although nothing was consumed")
	}
	x.books.pull(x.source, x.target) // in this order: a receipt seen here has its message there
	for k, q := range x.books.pairs {
		if n, had := bytes.Count(q.states, []byte{stateConsumed}), q.same+len(q.received)/16; n > had {
			t.Errorf("%+v: %d messages count as consumed, %d were handed over", k, n, had)
		}
	}
	x.target.do(portOrder{Do: "stall"})
	x.source.do(portOrder{Do: "settled", Within: portLimit})
	checkEqual(t, "bytes not consumed in the end", x.source.view().Queued, 0)

	// Calls, and calls that the handler refuses, among messages; each reply is compared by the caller.
	x.source.load(steady(streamForth))
	x.source.load(loadSettings{Stream: streamCalls, Kind: "call", Count: 100, Size: 100, Spread: 200 << 10})
	x.source.load(loadSettings{Stream: streamFailing, Kind: "failing-call", Count: 50, Size: 100})
	calls := func() (n int) {
		for k, q := range x.books.pairs {
			if k.stream == streamCalls || k.stream == streamFailing {
				n += q.same
			}
		}
		return n
	}
	eventually(t, portLimit, "all calls are answered", func() (bool, string) {
		x.books.pull(x.source, x.target)
		return calls() == 151, ""
	})
	x.source.unload(streamForth)
	a := x.books.close(x.source, x.target)
	checkEqual(t, "calls in the ledgers", calls(), 151)
	t.Logf("ledgers: %+v", a)
}

// claimBothDirections: the target sends and calls while the source does, and a path is cut.
func claimBothDirections(t *testing.T, _ *plays) {
	x := newTrio(t, 3, 0)
	x.source.open(x.settings())
	x.source.untilPaths(3)
	x.source.load(steady(streamForth))
	x.source.load(loadSettings{Stream: streamCalls, Kind: "call", Size: 100, Spread: 60 << 10})
	x.target.untilHanded(0, 50)
	x.target.load(steadyBack(streamBack))
	x.target.load(loadSettings{Stream: streamCallsBack, Kind: "call", Size: 100, Spread: 60 << 10, Inbound: true})
	on := func(n uint64) {
		t.Helper()
		there, here := x.target.view().Handed, x.source.view().Handed
		x.target.untilHanded(there, n)
		x.source.untilHanded(here, n)
	}
	on(200)
	x.toTarget[0].silence(bothWays)
	on(200)
	x.toTarget[1].kill(portNumber)
	on(200)
	x.toTarget[0].heal()
	x.source.untilPaths(3)
	x.toTarget[2].silence(forth)
	on(200)
	x.toTarget[2].heal()
	x.source.untilPaths(3)
	x.source.unload(streamForth, streamCalls)
	x.target.unload(streamBack, streamCallsBack)
	a := x.books.close(x.source, x.target)
	checkEqual(t, "sessions", a.Sessions, 1)
	checkEqual(t, "messages lost", a.Lost, 0)
	byStream := map[byte]int{}
	for k, q := range x.books.pairs {
		byStream[k.stream] += q.same
	}
	for _, s := range []byte{streamForth, streamBack, streamCalls, streamCallsBack} {
		if byStream[s] < 50 {
			t.Errorf("stream %d carried only %d messages", s, byStream[s])
		}
	}
	t.Logf("ledgers: %+v, by stream %v", a, byStream)
}
