package dataport_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"mirror-agent/dataport"
)

// A probe tells what a path would meet, and nothing changes at the node that is asked.
func TestProbe(t *testing.T) {
	a, _ := dataport.GenerateKey()
	b, _ := dataport.GenerateKey()
	other, _ := dataport.GenerateKey()
	for _, row := range []struct {
		name         string
		here, there  []ed25519.PublicKey
		plain        bool // the node that asks
		want         error
		says         string
		wrongAddress bool
	}{
		{name: "both know each other", here: []ed25519.PublicKey{pub(b)}, there: []ed25519.PublicKey{pub(a)}},
		{name: "an impostor", here: []ed25519.PublicKey{pub(other)}, there: []ed25519.PublicKey{pub(a)}, want: dataport.ErrWrongKey, says: dataport.FormatPublicKey(pub(b))},
		{name: "it does not know us", here: []ed25519.PublicKey{pub(b)}, there: []ed25519.PublicKey{pub(other)}, want: dataport.ErrRefused, says: "does not accept our key"},
		{name: "it talks TLS, we do not", there: []ed25519.PublicKey{pub(a)}, plain: true, says: "it talks TLS"},
		{name: "nobody is there", here: []ed25519.PublicKey{pub(b)}, there: []ed25519.PublicKey{pub(a)}, wrongAddress: true, says: "refused"},
	} {
		t.Run(row.name, func(t *testing.T) {
			tc, sc := config("target", "127.0.0.1:0"), config("source")
			tc.Insecure, tc.Key, tc.Peers = false, b, row.there
			sc.Insecure, sc.Key, sc.Peers = row.plain, a, row.here
			sc.Timing.HandshakeTimeout, tc.Timing.HandshakeTimeout = 20*time.Second, 20*time.Second
			there := newRecorder()
			n := node(t, tc)
			register(t, n, there)
			at := n.Addrs()[0]
			if row.wrongAddress {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				at = l.Addr().String()
				l.Close()
			}
			p, err := dataport.Probe(context.Background(), sc, "", at)
			if row.says == "" {
				if err != nil || p.Name != "target" || p.Key != dataport.FormatPublicKey(pub(b)) || p.RTT <= 0 || p.MTU < 576 || p.Remote != at {
					t.Errorf("%+v, %v", p, err)
				}
			} else if err == nil || !strings.Contains(err.Error(), row.says) || row.want != nil && !errors.Is(err, row.want) {
				t.Errorf("%v; want %v that says %q", err, row.want, row.says)
			}
			if k := there.kinds(); k != "" {
				t.Errorf("the node that was asked had events: %s", k)
			}
		})
	}
}

// Plain TCP has no keys, and names.
func TestProbe_insecure(t *testing.T) {
	n := node(t, config("target", "127.0.0.1:0"))
	register(t, n, newRecorder())
	sc := config("source")
	sc.Timing.HandshakeTimeout = 20 * time.Second
	p, err := dataport.Probe(context.Background(), sc, "127.0.0.1", n.Addrs()[0])
	if err != nil || p.Name != "target" || p.Key != "" || !strings.HasPrefix(p.Local, "127.0.0.1:") {
		t.Errorf("%+v, %v", p, err)
	}
}
