package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// portLab is two hosts as network namespaces with links between them, and the source and target that live there.
//
//	1: 100 Mbit/s   2: 20 Mbit/s   3, 4, 5: 100 Mbit/s (of which 3 is lost now and then)
//	6: through scripts/netns/wire: 500 Mbit/s, 15 ms each way   7: 30 ms each way
type portLab struct {
	*pair
	a, b, m string // namespaces of source, target and of the cables between them
	wires   []*exec.Cmd
}

type labLink struct {
	tbf  string // "": through a wire
	wire []string
}

var labLinks = []labLink{
	{tbf: "100mbit"},
	{tbf: "20mbit"},
	{tbf: "100mbit"},
	{tbf: "100mbit"},
	{tbf: "100mbit"},
	{wire: []string{"-rate", "500mbit", "-delay", "15ms", "-queue", "4MiB"}},
	{wire: []string{"-rate", "500mbit", "-delay", "30ms", "-queue", "4MiB"}},
}

func labIP(link, host int) string { return fmt.Sprintf("10.211.%d.%d", link, host) }

func ip(args ...string) error { return tool("ip", args...) }

func tool(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

func (b *bench) newPortLab(ctx context.Context) (*portLab, error) {
	l, ips, err := b.newLab(ctx, labLinks)
	if err != nil {
		return nil, err
	}
	if l.pair, err = startPair(ctx, l.b, l.a, ips...); err != nil {
		l.end()
	}
	return l, err
}

// newDelayLab is two hosts with one fast link that takes its time each way.
func (b *bench) newDelayLab(ctx context.Context, delay time.Duration) (*portLab, error) {
	l, _, err := b.newLab(ctx, []labLink{{wire: []string{"-rate", "1gbit", "-delay", delay.String(), "-queue", "4MiB"}}})
	return l, err
}

// newLab makes the namespaces and links, and returns the addresses of the second host.
func (b *bench) newLab(ctx context.Context, links []labLink) (l *portLab, ips []string, err error) {
	prefix := fmt.Sprintf("mab%d", os.Getpid())
	l = &portLab{a: prefix + "a", b: prefix + "b", m: prefix + "m"}
	defer func() {
		if err != nil {
			l.end()
		}
	}()
	for _, ns := range []string{l.a, l.b, l.m} {
		if err = ip("netns", "add", ns); err != nil {
			return nil, nil, err
		}
	}
	wire := filepath.Join(b.dir, "wire")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", wire, "./scripts/netns/wire").CombinedOutput(); err != nil {
		return nil, nil, fmt.Errorf("build scripts/netns/wire (bench runs in the root of the checkout): %w: %s", err, out)
	}
	for i, link := range links {
		n := i + 1
		va, vb := fmt.Sprintf("a%d", n), fmt.Sprintf("b%d", n)
		if link.tbf != "" {
			err = ip("link", "add", va, "netns", l.a, "type", "veth", "peer", "name", vb, "netns", l.b)
		} else {
			wa, wb := fmt.Sprintf("wa%d", n), fmt.Sprintf("wb%d", n)
			if err = ip("link", "add", va, "netns", l.a, "type", "veth", "peer", "name", wa, "netns", l.m); err == nil {
				err = ip("link", "add", vb, "netns", l.b, "type", "veth", "peer", "name", wb, "netns", l.m)
			}
			for _, w := range []string{wa, wb} {
				if err == nil {
					err = ip("-n", l.m, "link", "set", w, "up")
				}
			}
			if err == nil {
				err = l.startWire(ctx, wire, append(link.wire, wa, wb))
			}
		}
		for host, end := range [][2]string{{l.a, va}, {l.b, vb}} {
			if err == nil {
				err = ip("-n", end[0], "addr", "add", labIP(n, host+1)+"/24", "dev", end[1])
			}
			if err == nil {
				err = ip("-n", end[0], "link", "set", end[1], "up")
			}
			if err == nil && link.tbf != "" {
				err = tool("tc", "-n", end[0], "qdisc", "add", "dev", end[1], "root", "tbf", "rate", link.tbf, "burst", "128k", "latency", "50ms")
			}
		}
		if err != nil {
			return nil, nil, err
		}
		ips = append(ips, labIP(n, 2))
	}
	// The kernel's word that a cable has carrier may come up to a second later; until then nobody can listen or connect.
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		out, err := exec.CommandContext(ctx, "ip", "-n", l.a, "-brief", "link", "show", "type", "veth").CombinedOutput()
		if err == nil && !strings.Contains(string(out), "DOWN") {
			break
		}
		if time.Now().After(deadline) {
			return nil, nil, fmt.Errorf("links do not come up: %w\n%s", err, out)
		}
	}
	return l, ips, nil
}

func (l *portLab) startWire(ctx context.Context, program string, args []string) error {
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", l.m, program}, args...)...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	l.wires = append(l.wires, cmd)
	return nil
}

func (l *portLab) end() {
	if l.pair != nil {
		l.pair.end()
	}
	for _, w := range l.wires {
		_ = w.Process.Kill()
		_ = w.Wait()
	}
	for _, ns := range []string{l.a, l.b, l.m} {
		_ = ip("netns", "del", ns)
	}
}

func (l *portLab) plain(links ...int) (addrs []string) {
	for _, i := range links {
		addrs = append(addrs, l.at.Plain[i-1])
	}
	return addrs
}

func (l *portLab) tcp(link int) []string { return []string{l.at.TCP[link-1]} }

// losePath loads links 3, 4 and 5, has the first of them fall silent, and returns bytes per second in the second before,
// in the second after and in the one after that.
func (l *portLab) losePath(ctx context.Context) (r [3]float64, err error) {
	const warm, each = 1500 * time.Millisecond, time.Second
	fault := make(chan error, 1)
	go func() {
		select {
		case <-time.After(warm + each):
		case <-ctx.Done():
		}
		fault <- tool("ip", "netns", "exec", l.b, "nft", "table inet lost { chain in { type filter hook input priority 0; iifname \"b3\" drop; }; chain out { type filter hook output priority 0; oifname \"b3\" drop; }; }")
	}()
	got, err := l.source.run(portOrder{Kind: "port", To: l.plain(3, 4, 5), Size: 64 << 10, Warm: warm, For: 3 * each})
	if e := <-fault; e != nil {
		return r, e
	}
	if e := tool("ip", "netns", "exec", l.b, "nft", "delete table inet lost"); e != nil {
		return r, e
	}
	n := int(each / sampleEvery)
	for i, v := range got.Samples[:min(len(got.Samples), 3*n)] {
		r[i/n] += v
	}
	return r, err
}
