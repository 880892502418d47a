package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"syscall"

	"github.com/rs/zerolog"

	"mirror-agent/dataport"
	"mirror-agent/mirror"
)

// otherHost is a target or a backup with its addresses.
type otherHost struct {
	what      string
	addresses []string
}

func otherHosts(s *settings) (hosts []otherHost) {
	if len(s.config.Target) > 0 {
		hosts = append(hosts, otherHost{"target", s.config.Target})
	}
	for i, b := range s.config.Backups {
		hosts = append(hosts, otherHost{fmt.Sprintf("backup %d", i+1), b})
	}
	return hosts
}

// examineNetwork asks every address of the other hosts who is there, and looks at those of this one. Where no settings were
// given, the paths of the agent that runs have to do.
func (a *app) examineNetwork(ctx context.Context, s *settings, st *mirror.Status) (list []finding) {
	hosts := otherHosts(s)
	if st == nil {
		for _, at := range s.config.Listen {
			list = append(list, listenFinding("listen", at))
		}
		if s.metrics != "" {
			list = append(list, listenFinding("metrics", s.metrics))
		}
	}
	if len(hosts) == 0 {
		return append(list, agentPaths(st)...)
	}
	if s.config.Key == nil && !s.config.Insecure {
		return append(list, finding{"network", "", levelWarn, "the other hosts are not asked: this host has no key to prove itself by", "see keys"})
	}
	for _, h := range hosts {
		list = append(list, a.askHost(ctx, s, h)...)
	}
	return list
}

// askHost asks all addresses of one host at once.
func (a *app) askHost(ctx context.Context, s *settings, h otherHost) []finding {
	c := dataport.DefaultConfig()
	c.Key, c.Peers, c.Insecure, c.Log = s.config.Key, s.config.Peers, s.config.Insecure, zerolog.Nop()
	if s.config.NodeName != "" {
		c.Name = s.config.NodeName
	}
	list := make([]finding, len(h.addresses))
	found := make([]dataport.Probed, len(h.addresses))
	var wg sync.WaitGroup
	for i, address := range h.addresses {
		local := ""
		if len(s.config.Local) == len(h.addresses) {
			local = s.config.Local[i]
		}
		wg.Go(func() {
			p, err := dataport.Probe(ctx, c, local, address)
			found[i], list[i] = p, probeFinding(h.what+" "+address, p, err)
		})
	}
	wg.Wait()
	names := map[string]string{}
	for i, p := range found {
		if list[i].Level != levelFail {
			names[p.Key+" "+p.Name] = fmt.Sprintf("%s at %s", p.Name, h.addresses[i])
		}
	}
	if len(names) > 1 {
		var all []string
		for _, n := range names {
			all = append(all, n)
		}
		list = append(list, finding{
			"network", h.what, levelFail, "its addresses lead to different hosts: " + strings.Join(all, ", "),
			"commas separate the addresses of one host; every backup is a --backup of its own",
		})
	}
	return list
}

const (
	// leastMTU is that of IPv6; tunnels have less than Ethernet's 1500.
	leastMTU = 1280
	usualMTU = 1500
)

// probeFinding says what the answer of an address means.
func probeFinding(about string, p dataport.Probed, err error) finding {
	f := finding{"network", about, levelFail, "", ""}
	var refusal *dataport.RefusedError
	var name *net.DNSError
	var timeout net.Error
	switch {
	case err == nil:
		f.Level, f.Says = levelOK, fmt.Sprintf("%s answers in %s", p.Name, formatSeconds(p.RTT.Seconds()))
		if p.MTU > 0 {
			f.Says += fmt.Sprintf(", MTU %d", p.MTU)
		}
		if p.MTU > 0 && p.MTU < leastMTU {
			f.Level, f.Do = levelWarn, fmt.Sprintf("packets are small (%d is usual): look at tunnels on the way; ping -M do -s SIZE finds where", usualMTU)
		}
	case errors.Is(err, dataport.ErrWrongKey):
		f.Says, f.Do = err.Error(), "if that host was reinstalled, replace its key in peer-key (mirror-agent keygen --show there); else it is another host"
	case errors.As(err, &refusal) && refusal.Code == dataport.RefusedProof:
		f.Says, f.Do = err.Error(), "add this host's public key (mirror-agent keygen --show) to peer-key there, then kill -HUP its agent"
	case errors.As(err, &refusal):
		f.Says, f.Do = err.Error(), "see the log of the agent there"
	case errors.As(err, &name):
		f.Says, f.Do = err.Error(), "correct the name, or write the address"
	case errors.Is(err, syscall.ECONNREFUSED):
		f.Says, f.Do = "nothing listens there", "start the agent there; is this an address of its --listen?"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		f.Says, f.Do = err.Error(), "no route: is that network up here, and that host there?"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		f.Says, f.Do = err.Error(), "--local names an address that this host does not have"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		f.Says, f.Do = "no answer", "is that host up, and does a firewall on the way let this port through?"
	default:
		f.Says, f.Do = err.Error(), "see the log of the agent there, if it is one that answers at this address"
	}
	return f
}

// listenFinding tries whether an address of this host can be listened at.
func listenFinding(what, address string) finding {
	f := finding{"network", what + " " + address, levelOK, "is free", ""}
	l, err := net.Listen("tcp", address)
	switch {
	case err == nil:
		l.Close()
	case errors.Is(err, syscall.EADDRINUSE):
		f.Level, f.Says, f.Do = levelFail, "in use by another process", "ss -ltnp shows which; stop it, or choose another --"+what
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		f.Level, f.Says, f.Do = levelFail, "this host has no such address", "ip address shows those that it has; choose another --"+what
	default:
		f.Level, f.Says, f.Do = levelFail, err.Error(), "choose another --"+what
	}
	return f
}

// agentPaths are the paths of the agent that runs.
func agentPaths(st *mirror.Status) (list []finding) {
	if st == nil {
		return nil
	}
	add := func(who string, paths []mirror.PathStatus) {
		for _, p := range paths {
			f := finding{"network", fmt.Sprintf("%s path %d %s", who, p.ID, p.Remote), levelOK, p.State, ""}
			words, _ := mirror.WordsFor(mirror.SubjectPath, p.State)
			switch {
			case p.State == "active" || p.State == "standby":
				f.Says = fmt.Sprintf("%s, round trip %.2f ms", p.State, float64(p.RTTMicros)/1000)
			case p.Unproven:
				f.Says = "never reached, an address that the target announced by itself"
			default:
				f.Level, f.Says, f.Do = levelWarn, p.State+": "+p.Reason, words.Next
			}
			list = append(list, f)
		}
	}
	for i := range st.Followers {
		add(st.Followers[i].Target, st.Followers[i].Paths)
	}
	if st.Source != nil {
		add(st.Source.Peer, st.Source.Paths)
	}
	return list
}
