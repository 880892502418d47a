package main

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"mirror-agent/dataport"
)

// Both ends of the data port's measurements are processes of their own: -serve port-target listens and takes what comes,
// -serve port-source sends what the lines on its standard input ask for. They may live in different namespaces.

// portTarget is what a target prints: where it listens.
type portTarget struct {
	Plain, Secure []string // data ports, one address for each of its addresses
	Key           string   // of the secure one
	TCP, TLS      []string // plain connections that are read and forgotten
}

// portOrder asks the source for one run.
type portOrder struct {
	Kind  string // port, tcp or tls
	To    []string
	Key   string // of the target: with TLS
	Paths int
	Size  int
	Batch int // so many messages go as one batch

	Single    bool // they are sent one by one instead, and the receipt of the last is waited for
	Scheduler string
	Warm, For time.Duration
}

type portResult struct {
	Err     string
	Bytes   float64 // per second, in the measured time
	Samples []float64
}

// sampleEvery is the resolution of Samples.
const sampleEvery = 50 * time.Millisecond

type takes struct{}

func (takes) OnMessage(context.Context, dataport.Message) ([]byte, error) { return nil, nil }
func (takes) OnEvent(dataport.Event)                                      {}

// sourceKey is what the source of all measurements has: target and source need not exchange it.
func sourceKey() ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
}

func portNode(c dataport.Config, listen ...string) (*dataport.Node, error) {
	d := dataport.DefaultConfig()
	d.Key, d.Peers, d.Insecure, d.Listen = c.Key, c.Peers, c.Insecure, listen
	return dataport.NewNode(d)
}

// runPortTarget listens on every IP named in args until its standard input ends.
func runPortTarget(ctx context.Context, ips []string) error {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	certificate, err := selfSigned(key)
	if err != nil {
		return err
	}
	var addrs []string
	var t portTarget
	for _, ip := range ips {
		addrs = append(addrs, net.JoinHostPort(ip, "0"))
		for _, secure := range []bool{false, true} {
			l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
			if err != nil {
				return err
			}
			defer l.Close()
			if secure {
				t.TLS = append(t.TLS, l.Addr().String())
				l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true})
			} else {
				t.TCP = append(t.TCP, l.Addr().String())
			}
			go takeAll(l)
		}
	}
	public := sourceKey().Public().(ed25519.PublicKey)
	for _, c := range []dataport.Config{{Insecure: true}, {Key: key, Peers: []ed25519.PublicKey{public}}} {
		n, err := portNode(c, addrs...)
		if err != nil {
			return err
		}
		defer n.Close()
		if _, err := n.Register("bench", takes{}); err != nil {
			return err
		}
		if c.Insecure {
			t.Plain = n.Addrs()
		} else {
			t.Secure, t.Key = n.Addrs(), dataport.FormatPublicKey(key.Public().(ed25519.PublicKey))
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(t); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	select {
	case <-ctx.Done():
	case <-ended:
	}
	return nil
}

// takeAll reads every connection to its end and says how much has come, now and then: what the source counts is what
// has arrived, not what its kernel holds.
func takeAll(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			var n atomic.Int64
			done := make(chan struct{})
			go func() {
				tick := time.NewTicker(10 * time.Millisecond)
				defer tick.Stop()
				for {
					select {
					case <-tick.C:
						if _, err := fmt.Fprintln(c, n.Load()); err != nil {
							return
						}
					case <-done:
						return
					}
				}
			}()
			// The wrappers hide WriteTo and ReadFrom: the bytes come to user space, in large pieces, as everybody's do.
			_, _ = io.CopyBuffer(struct{ io.Writer }{counting{&n}}, struct{ io.Reader }{c}, make([]byte, 256<<10))
			close(done)
		}()
	}
}

type counting struct{ n *atomic.Int64 }

func (c counting) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return len(b), nil
}

func selfSigned(key ed25519.PrivateKey) (tls.Certificate, error) {
	t := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// runPortSource does the runs that standard input asks for, one after the other.
func runPortSource(ctx context.Context) error {
	in, out := bufio.NewScanner(os.Stdin), json.NewEncoder(os.Stdout)
	for ctx.Err() == nil && in.Scan() {
		var o portOrder
		if err := json.Unmarshal(in.Bytes(), &o); err != nil {
			return err
		}
		r, err := o.run(ctx)
		if err != nil {
			r.Err = err.Error()
		}
		if err := out.Encode(r); err != nil {
			return err
		}
	}
	return in.Err()
}

func (o *portOrder) run(ctx context.Context) (portResult, error) {
	ctx, cancel := context.WithTimeout(ctx, o.Warm+o.For+30*time.Second)
	defer cancel()
	if o.Kind == "port" {
		return o.runPort(ctx)
	}
	return o.runStream()
}

// measured samples a count while a load runs.
func (o *portOrder) measured(count func() int64) (r portResult) {
	time.Sleep(o.Warm)
	start, first := time.Now(), count()
	last := first
	for time.Since(start) < o.For {
		time.Sleep(sampleEvery)
		now := count()
		r.Samples = append(r.Samples, float64(now-last))
		last = now
	}
	r.Bytes = float64(last-first) / time.Since(start).Seconds()
	return r
}

// runStream is the other side of the comparison: one connection of TCP or TLS.
func (o *portOrder) runStream() (r portResult, err error) {
	c, err := net.Dial("tcp", o.To[0])
	if err != nil {
		return r, err
	}
	if o.Kind == "tls" {
		c = tls.Client(c, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, DynamicRecordSizingDisabled: true})
	}
	var n atomic.Int64
	go func() {
		for lines := bufio.NewScanner(c); lines.Scan(); {
			var v int64
			if _, err := fmt.Sscan(lines.Text(), &v); err == nil {
				n.Store(v)
			}
		}
	}()
	ended := make(chan error, 1)
	go func() {
		b := make([]byte, o.Size)
		for {
			if _, err := c.Write(b); err != nil {
				ended <- err
				return
			}
		}
	}()
	r = o.measured(n.Load)
	select {
	case err = <-ended: // before we closed it
	default:
	}
	_ = c.Close()
	return r, err
}

// runPort counts what the target's client has consumed: the receipts.
func (o *portOrder) runPort(ctx context.Context) (r portResult, err error) {
	conf := dataport.Config{Insecure: o.Key == ""}
	if o.Key != "" {
		k, err := dataport.ParsePublicKey(o.Key)
		if err != nil {
			return r, err
		}
		conf.Key, conf.Peers = sourceKey(), []ed25519.PublicKey{k}
	}
	n, err := portNode(conf)
	if err != nil {
		return r, err
	}
	defer n.Close()
	reg, err := n.Register("bench", takes{})
	if err != nil {
		return r, err
	}
	pc := dataport.PortConfig{Target: o.To, Paths: o.Paths}
	if o.Scheduler == "round-robin" {
		pc.Scheduler = dataport.RoundRobin()
	}
	p, err := reg.Open(ctx, pc)
	if err != nil {
		return r, err
	}
	for p.State() != dataport.PortConnected { // all paths are up
		if ctx.Err() != nil {
			return r, fmt.Errorf("connect: %w (%s)", ctx.Err(), p.Stats().Reason)
		}
		time.Sleep(time.Millisecond)
	}
	var count atomic.Int64
	var failed atomic.Pointer[error]
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		if err := o.send(ctx, p, &count, stop); err != nil {
			failed.Store(&err)
		}
	}()
	r = o.measured(count.Load)
	close(stop)
	<-ended
	if e := failed.Load(); e != nil {
		return r, *e
	}
	return r, nil
}

func (o *portOrder) send(ctx context.Context, p *dataport.Port, count *atomic.Int64, stop chan struct{}) error {
	b := make([]byte, o.Size)
	batch := max(o.Batch, 1)
	msgs := slices.Repeat([][]byte{b}, batch)
	open := make(chan *dataport.Receipt, 1<<16/batch)
	failed := make(chan error, 1)
	go func() {
		defer close(failed)
		for r := range open {
			if err := r.Wait(ctx); err != nil {
				failed <- err
				return
			}
			count.Add(int64(o.Size * batch))
		}
	}()
	for {
		select {
		case <-stop:
			close(open)
			return <-failed
		default:
		}
		var last *dataport.Receipt
		var err error
		if o.Batch > 0 && !o.Single {
			last, err = p.SendBatch(ctx, msgs...)
		} else {
			for range batch {
				if last, err = p.Send(ctx, b); err != nil {
					break
				}
			}
		}
		if err != nil {
			close(open)
			return errors.Join(err, <-failed)
		}
		select {
		case open <- last:
		case err := <-failed:
			return err
		}
	}
}
