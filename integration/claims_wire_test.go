package integration

import (
	"fmt"
	"net"
	"testing"
	"time"
)

// claimTCP looks at the wire of both paths, once in the clear and once with keys.
func claimTCP(t *testing.T, _ *plays) {
	n := newTopology(t)
	cables := n.toTarget[:2]
	for _, secure := range []bool{false, true} {
		t.Run(map[bool]string{false: "plain", true: "tls"}[secure], func(t *testing.T) {
			source, target := nodeOf("source"), nodeOf("target", addrsOf(cables, portNumber)...)
			if !secure {
				source.Seed, target.Seed = nil, nil
			}
			to := startHost(t, n.tgt, target).register("vol")
			from := startHost(t, n.src, source).register("vol")
			from.open(portSettings{Target: addrsOf(cables, portNumber)})
			from.untilPaths(2)
			from.load(steady(streamForth))
			to.untilHanded(0, 50)
			for _, c := range cables {
				var w captured
				from.ask(portOrder{Do: "capture", Addr: c.nearIf, Within: 500 * time.Millisecond}, &w)
				if w.TCP == 0 || w.Other != 0 {
					t.Errorf("%s: %d TCP packets and %d others", c.nearIf, w.TCP, w.Other)
				}
				checkEqual(t, c.nearIf+": directions of connections", len(w.Flows), 2)
				for flow := range w.Flows {
					var a, b string
					if _, err := fmt.Sscanf(flow, "%s > %s", &a, &b); err != nil || hostOf(a) != c.nearIP && hostOf(b) != c.nearIP {
						t.Errorf("%s: %s does not belong to this cable", c.nearIf, flow)
					}
				}
				if secure && (w.PortMark > 0 || w.TLS == 0) || !secure && w.PortMark == 0 {
					t.Errorf("%s: %d packets with a frame in the clear, %d with TLS", c.nearIf, w.PortMark, w.TLS)
				}
				t.Logf("%s: %+v", c.nearIf, w)
			}
			from.unload(streamForth)
			b := newBooks(t)
			b.close(from, to)
			from.kill()
			to.kill()
		})
	}
}

func hostOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	return host
}
