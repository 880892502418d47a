package dataport_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"sync"
	"testing"

	"mirror-agent/dataport"
	"mirror-agent/dataport/dataporttest"
)

// packedPair is a source and a target with two paths through proxies; each packs what it sends in its own way.
func packedPair(t *testing.T, there, back dataport.Compression) (source, target *recorder, p *dataport.Port, paths []*dataporttest.Proxy) {
	t.Helper()
	source, target = newRecorder(), newRecorder()
	tc := config("target", "127.0.0.1:0", "127.0.0.1:0")
	tc.Compression = back
	tn := node(t, tc)
	register(t, tn, target)
	var addrs []string
	for _, a := range tn.Addrs() {
		x := dataporttest.NewProxy(a)
		t.Cleanup(x.Close)
		paths, addrs = append(paths, x), append(addrs, x.Addr())
	}
	p = open(t, register(t, node(t, config("source")), source), dataport.PortConfig{Target: addrs, Compression: there})
	source.awaitEvent(t, dataport.PathUp, 2)
	return source, target, p, paths
}

// What is packed arrives as it was, once, in order, both ways, while paths are cut; receipts mean what they mean.
func TestPackedStreamsOverFaults(t *testing.T) {
	for _, row := range []struct{ there, back dataport.Compression }{
		{dataport.CompressS2, dataport.CompressZstd}, {dataport.CompressZstd, ""}, {dataport.CompressAuto, dataport.CompressS2},
	} {
		t.Run(string(row.there)+" and "+string(row.back), func(t *testing.T) {
			source, target, p, paths := packedPair(t, row.there, row.back)
			if _, err := p.Call(context.Background(), []byte("here I am")); err != nil {
				t.Fatal(err)
			}
			s, peer := p.Session(), target.lastSession()
			before := target.ledgerOf(s.ID())
			var sent, back ledger
			var wg sync.WaitGroup
			wg.Go(func() { sent = streamFrom(t, p, 100, before) })
			wg.Go(func() { back = stream(t, peer, 100) })
			target.await(t, "some messages", func() bool { return target.got[s.ID()].count > 20 })
			paths[0].Cut()
			source.awaitEvent(t, dataport.PathDown, 1)
			paths[1].Cut()
			wg.Wait()
			if got := target.ledgerOf(s.ID()); got != sent {
				t.Errorf("target got %+v, source sent %+v", got, sent)
			}
			if got := source.ledgerOf(s.ID()); got != back {
				t.Errorf("source got %+v, target sent %+v", got, back)
			}
			c, d := s.Stats().Compression, peer.Stats().Compression
			if row.there != dataport.CompressAuto && (c.InUse != row.there || c.BytesAfter*3 > c.BytesBefore) {
				t.Errorf("source's side: %+v", c)
			}
			if row.back != "" && (d.InUse != row.back || d.BytesAfter*3 > d.BytesBefore) || row.back == "" && d.Packed != 0 {
				t.Errorf("target's side: %+v", d)
			}
			if c.ReceivedUnpacked > 0 != (row.back != "") || c.ReceivedUnpacked < c.ReceivedPacked {
				t.Errorf("what the source unpacked: %+v", c)
			}
			if q := s.Stats().QueuedBytes + peer.Stats().QueuedBytes; q != 0 {
				t.Errorf("%d bytes of the windows are still taken", q)
			}
			if got, want := s.Stats().BytesSent, peer.Stats().BytesReceived; got != want {
				t.Errorf("%d bytes sent, %d received: both mean plain messages", got, want)
			}
		})
	}
}

func TestPackedCallAndReply(t *testing.T) {
	for _, mode := range []dataport.Compression{dataport.CompressS2, dataport.CompressZstd} {
		t.Run(string(mode), func(t *testing.T) {
			_, target, p, _ := packedPair(t, mode, mode)
			text := bytes.Repeat([]byte("a block that is written again and again, "), 20_000)
			random := make([]byte, 300_000)
			_, _ = rand.Read(random)
			target.mu.Lock()
			target.onMsg = func(_ context.Context, m dataport.Message) ([]byte, error) {
				switch string(m.Payload) {
				case "refuse":
					return nil, errors.New(strings.Repeat("no ", 300))
				case "nothing":
					return nil, nil
				}
				return m.Payload, nil // lies in the payload: the port copies it
			}
			target.mu.Unlock()
			for name, ask := range map[string][]byte{"text": text, "random": random, "short": []byte("x"), "empty": {}} {
				got, err := p.Call(context.Background(), ask[:len(ask)/2], ask[len(ask)/2:])
				if err != nil || !bytes.Equal(got, ask) {
					t.Errorf("%s: %d bytes for %d, %v", name, len(got), len(ask), err)
				}
			}
			if got, err := p.Call(context.Background(), []byte("nothing")); err != nil || len(got) != 0 {
				t.Errorf("nothing: %q %v", got, err)
			}
			var remote *dataport.RemoteError
			if _, err := p.Call(context.Background(), []byte("refuse")); !errors.As(err, &remote) || !strings.HasPrefix(remote.Text, "no no") {
				t.Errorf("refusal: %v", err)
			}
			there, back := p.Session().Stats().Compression, target.lastSession().Stats().Compression
			if there.Packed != 1 || back.Packed != 1 {
				t.Errorf("one message and one reply shrink; packed were %d and %d", there.Packed, back.Packed)
			}
			if there.BytesAfter < 300_000 || there.BytesAfter > 400_000 {
				t.Errorf("%d bytes went out: what is random as it is, what is text much less", there.BytesAfter)
			}
		})
	}
}

// A message above the limit is refused by its plain size, however small it would be packed; and so is a reply.
func TestLimitsArePlainSizes(t *testing.T) {
	source, target := newRecorder(), newRecorder()
	tc, sc := config("target", "127.0.0.1:0"), config("source")
	tc.MaxMessageBytes, sc.MaxMessageBytes, tc.Compression = 1<<20, 1<<19, dataport.CompressS2
	tn := node(t, tc)
	register(t, tn, target)
	p := open(t, register(t, node(t, sc), source), dataport.PortConfig{Target: tn.Addrs(), Compression: dataport.CompressS2})
	source.awaitEvent(t, dataport.SessionUp, 1)
	if _, err := p.Send(context.Background(), make([]byte, 1<<20+1)); !errors.Is(err, dataport.ErrMessageTooBig) {
		t.Errorf("too big a message: %v", err)
	}
	r, err := p.Send(context.Background(), make([]byte, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Wait(context.Background()); err != nil {
		t.Errorf("the biggest message: %v", err)
	}
	var remote *dataport.RemoteError
	if _, err := p.Call(context.Background(), make([]byte, 1<<19)); !errors.As(err, &remote) || !strings.Contains(remote.Text, "takes at most") {
		t.Errorf("a reply of 512 KiB and 3 bytes: %v", err)
	}
	if _, err := p.Call(context.Background(), make([]byte, 1<<19-3)); err != nil {
		t.Errorf("a reply of 512 KiB: %v", err)
	}
}

// A receipt that is open when the session ends fails, packed or not, and the parts are the caller's.
func TestPackedReceiptsFailWithTheSession(t *testing.T) {
	_, target, p, _ := packedPair(t, dataport.CompressZstd, "")
	hold := make(chan struct{})
	target.mu.Lock()
	target.onMsg = func(context.Context, dataport.Message) ([]byte, error) { <-hold; return nil, nil }
	target.mu.Unlock()
	defer close(hold)
	part := bytes.Repeat([]byte("never read again "), 10_000)
	var open []*dataport.Receipt
	for range 5 {
		r, err := p.Send(context.Background(), part)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, r)
	}
	_ = p.Close()
	for _, r := range open {
		if err := r.Wait(context.Background()); !errors.Is(err, dataport.ErrSessionLost) {
			t.Errorf("receipt: %v", err)
		}
	}
	clear(part)
}

func TestCompressionIsChecked(t *testing.T) {
	c := config("node")
	c.Compression = "lzma"
	if _, err := dataport.NewNode(c); err == nil || !strings.Contains(err.Error(), "choose none, s2, zstd or auto") {
		t.Errorf("node: %v", err)
	}
	r := register(t, node(t, config("node")), newRecorder())
	if _, err := r.Open(context.Background(), dataport.PortConfig{Target: []string{"127.0.0.1:1"}, Compression: "S2"}); err == nil || !strings.Contains(err.Error(), `"S2"`) {
		t.Errorf("port: %v", err)
	}
	for _, s := range []string{"none", "s2", "zstd", "auto"} {
		if got, err := dataport.ParseCompression(s); err != nil || string(got) != s {
			t.Errorf("%s: %q %v", s, got, err)
		}
	}
}
