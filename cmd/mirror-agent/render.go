package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"mirror-agent/mirror"
)

const (
	barColumns = 17
	sinceStamp = "2006-01-02 15:04:05"
	soonFull   = time.Minute
)

// view turns states into one screen of text. With the state of a moment ago
// it shows rates as well.
type view struct {
	paint
	now        time.Time
	before     *mirror.Status // nil: no rates
	beforeTime time.Time
	past       *past // nil: no sparklines
}

// status writes everything that an operator looks for first: is it fine, how
// far behind, what is wrong, what to do.
func (v view) status(w io.Writer, st *mirror.Status) {
	head := []string{st.Role, v.state(st.State), st.Mode}
	if st.Generation != "" {
		head = append(head, "generation "+st.Generation)
	}
	fmt.Fprintf(w, "%s   %s   %s\n", v.bold(st.Name), strings.Join(head, " · "), v.dim(v.since(st.Since)))
	if st.Reason != "" {
		fmt.Fprintf(w, "  why       %s\n", st.Reason)
	}
	fmt.Fprintf(w, "  device    %s  %s%s%s\n", st.Device.Path, formatSize(st.Device.SizeBytes), gap(10), v.log(&st.Log))
	if st.NBD.Address != "" {
		fmt.Fprintf(w, "  clients   %s\n", v.clients(&st.NBD))
	}
	if s := network(st.Network); s != "" {
		fmt.Fprintf(w, "  network   %s\n", s)
	}
	if st.Source != nil {
		v.source(w, st.Source)
	}
	backups := 0
	for i := range st.Followers {
		f := &st.Followers[i]
		label := f.Kind
		if f.Kind == "backup" {
			backups++
			label = fmt.Sprintf("backup %d", backups)
		}
		v.follower(w, label, f)
	}
	v.checks(w, st)
	if st.Drill != nil {
		fmt.Fprintf(w, "  drill     %s\n", v.drillLine(st.Drill))
	}
	v.alarms(w, st)
	if st.NextStep != "" {
		fmt.Fprintf(w, "  next      %s\n", st.NextStep)
	}
}

func gap(n int) string { return strings.Repeat(" ", n) }

func (v view) since(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return fmt.Sprintf("since %s (%s)", t.Format(sinceStamp), formatSpan(v.now.Sub(t)))
}

// log says what the ring holds: what the device has not got yet, and history
// from which a target that was away catches up without a resync.
func (v view) log(l *mirror.LogStatus) string {
	if l.SizeBytes <= 0 {
		return ""
	}
	s := fmt.Sprintf("log  %s, %d %% not applied yet, %s of history", formatSize(l.SizeBytes), int64(l.Head-l.Applied)*100/l.SizeBytes, formatSize(l.Head-l.Tail))
	if full := l.FullInSeconds; full != nil && *full < soonFull.Seconds() && l.PinnedBytes > l.SizeBytes/2 {
		s += fmt.Sprintf(", full in %s if the disk stands still", formatSpan(time.Duration(*full*float64(time.Second))))
	}
	if v.before == nil || l.Head <= v.before.Log.Head {
		return s
	}
	span := time.Duration(float64(l.SizeBytes/4*3) / v.rate(l.Head, v.before.Log.Head) * float64(time.Second))
	return s + fmt.Sprintf("; a target may be away for %s at this rate", formatSpan(span))
}

// rate is the growth of a counter in a second.
func (v view) rate(now, before uint64) float64 {
	seconds := v.now.Sub(v.beforeTime).Seconds()
	if seconds <= 0 || now < before {
		return 0
	}
	return float64(now-before) / seconds
}

func (v view) clients(n *mirror.FrontStats) string {
	at := n.Address
	if n.TLS {
		at += ", TLS"
	}
	s := fmt.Sprintf("%d (%s)", n.Connections, at)
	if v.before != nil {
		b := &v.before.NBD
		return s + fmt.Sprintf("   %s writes/s  %s/s   %s reads/s  %s/s   %s flushes/s",
			count(v.rate(n.Writes, b.Writes)), formatSize(uint64(v.rate(n.WrittenBytes, b.WrittenBytes))),
			count(v.rate(n.Reads, b.Reads)), formatSize(uint64(v.rate(n.ReadBytes, b.ReadBytes))),
			count(v.rate(n.Flushes, b.Flushes)))
	}
	return s + fmt.Sprintf("   %s writes  %s   %s reads  %s   %s flushes",
		count(float64(n.Writes)), formatSize(n.WrittenBytes), count(float64(n.Reads)), formatSize(n.ReadBytes), count(float64(n.Flushes)))
}

func count(f float64) string { return humanize.Comma(int64(f + 0.5)) }

func (v view) source(w io.Writer, s *mirror.SourceStatus) {
	state := "not connected"
	if s.Connected {
		state = "connected"
	}
	peer := s.Peer
	if peer == "" {
		peer = "none yet"
	}
	fmt.Fprintf(w, "  source    %s   %s", peer, v.state(state))
	if !s.Connected && !s.LastSeen.IsZero() {
		fmt.Fprintf(w, "   last seen %s ago", formatSpan(v.now.Sub(s.LastSeen)))
	}
	if s.SourceHead >= s.Durable && s.SourceHead > 0 {
		fmt.Fprintf(w, "   %s behind", formatSize(s.SourceHead-s.Durable))
	}
	fmt.Fprintln(w)
	if n := network(s.Network); n != "" {
		fmt.Fprintf(w, "    network %s\n", n)
	}
	v.resync(w, s.Peer, s.Resync)
	v.paths(w, s.Peer, s.Paths)
}

func (v view) follower(w io.Writer, label string, f *mirror.FollowerStatus) {
	fmt.Fprintf(w, "  %-9s %s   %s", label, f.Target, v.state(f.State))
	if f.Active {
		fmt.Fprint(w, ", active")
	}
	if f.Hot && !f.Active {
		fmt.Fprint(w, ", hot")
	}
	if f.Durable == 0 {
		fmt.Fprint(w, "   nothing there yet")
	} else {
		fmt.Fprintf(w, "   RPO %.1f s   %s behind", f.RPOSeconds, formatSize(f.LagBytes))
	}
	if f.DirtyBytes > 0 {
		fmt.Fprintf(w, "   %s to resync", formatSize(f.DirtyBytes))
	}
	fmt.Fprintln(w)
	if f.Reason != "" && f.State != "streaming" {
		fmt.Fprintf(w, "    why     %s\n", f.Reason)
	}
	if s := v.trend(f.Target); s != "" {
		fmt.Fprintf(w, "    RPO     %s\n", s)
	}
	if s := v.coming(f); s != "" {
		fmt.Fprintf(w, "    behind  %s\n", s)
	}
	v.resync(w, f.Target, f.Resync)
	v.paths(w, f.Target, f.Paths)
}

func (v view) resync(w io.Writer, who string, p *mirror.Progress) {
	if p == nil || p.TotalBytes <= 0 {
		return
	}
	share := float64(p.DoneBytes) / float64(p.TotalBytes)
	fmt.Fprintf(w, "    resync  %s of %s   %s  %2.0f %%", formatSize(p.DoneBytes), formatSize(p.TotalBytes), bar(share, barColumns), share*100)
	if rate := v.resyncRate(who, p); rate > 0 {
		left := time.Duration(float64(p.TotalBytes-p.DoneBytes) / rate * float64(time.Second))
		fmt.Fprintf(w, "   %s/s   %s left", formatSize(uint64(rate)), formatSpan(left))
	}
	if p.YieldsTo > 0 {
		fmt.Fprintf(w, "   yields to applications, %s/s", formatSize(uint64(p.YieldsTo)))
	}
	fmt.Fprintln(w)
}

// network says how messages are packed and what limits them; nothing when neither is asked for.
func network(n *mirror.NetworkStatus) string {
	if n == nil {
		return ""
	}
	var parts []string
	if n.Compress != "none" {
		how := n.Compress
		if n.InUse != n.Compress {
			how += ", " + n.InUse + " now"
		}
		parts = append(parts, "compress "+how+packedTo(n.SentBytes, n.SentPacked, "sent"))
	}
	if n.ReceivedPacked > 0 {
		parts = append(parts, "packed"+packedTo(n.ReceivedBytes, n.ReceivedPacked, "received"))
	}
	if n.Bandwidth != "" && n.Bandwidth != "none" {
		parts = append(parts, bandwidthNow(n))
	}
	return strings.Join(parts, gap(3))
}

func packedTo(before, after uint64, what string) string {
	if before == 0 {
		return ""
	}
	return fmt.Sprintf(": %s %s as %s (%.0f %%)", formatSize(before), what, formatSize(after), float64(after)/float64(before)*100)
}

func bandwidthNow(n *mirror.NetworkStatus) string {
	if n == nil || n.Bandwidth == "" || n.Bandwidth == "none" {
		return "bandwidth not limited"
	}
	s := "bandwidth not limited now"
	if n.BandwidthNow > 0 {
		s = "bandwidth " + humanize.SI(n.BandwidthNow, "B/s") + " now"
	}
	if strings.Contains(n.Bandwidth, "=") {
		s += " (" + n.Bandwidth + ")"
	}
	return s
}

// paths lists the connections and how the load is shared among them.
func (v view) paths(w io.Writer, who string, paths []mirror.PathStatus) {
	total, loads := 0.0, make([]float64, len(paths))
	live := v.before != nil // rates, where there are any: else what was sent in all
	for i := range paths {
		_, ok := v.pathRate(who, &paths[i])
		live = live && ok
	}
	for i := range paths {
		loads[i] = float64(paths[i].BytesSent)
		if live {
			loads[i], _ = v.pathRate(who, &paths[i])
		}
		total += loads[i]
	}
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	for i, p := range paths {
		load := formatSize(p.BytesSent) + " sent"
		if live {
			load = formatSize(uint64(loads[i])) + "/s"
		}
		fmt.Fprintf(t, "    path %d  %s → %s\t%s\t%.2f ms\t%s", p.ID, p.Local, p.Remote, v.state(p.State), float64(p.RTTMicros)/1000, load)
		if total > 0 {
			share := loads[i] / total
			fmt.Fprintf(t, "\t%s  %2.0f %%", bar(share, barColumns), share*100)
		}
		if p.Reason != "" && p.State != "active" && p.State != "standby" {
			fmt.Fprintf(t, "   %s", p.Reason)
		}
		fmt.Fprintln(t)
	}
	t.Flush()
}

// alarms lists what wants attention; what the state has said is not repeated.
func (v view) alarms(w io.Writer, st *mirror.Status) {
	alarms := st.Alarms
	if len(alarms) == 0 {
		fmt.Fprintf(w, "  %s\n", v.good("no alarms"))
		return
	}
	for _, a := range alarms {
		what := a.Name
		if a.Reason != st.Reason {
			what += ": " + a.Reason
		}
		fmt.Fprintf(w, "  %s     %s   %s\n", v.bad("ALARM"), what, v.dim(v.since(a.Since)))
		if a.NextStep != "" && a.NextStep != st.NextStep {
			fmt.Fprintf(w, "            %s\n", a.NextStep)
		}
	}
}

// line is the state in one line, for a log or a screen that only grows.
func (v view) line(st *mirror.Status) string {
	s := fmt.Sprintf("%s  %s  %s %s", v.now.Format(time.TimeOnly), st.Name, st.Role, v.state(st.State))
	for i := range st.Followers {
		f := &st.Followers[i]
		s += fmt.Sprintf("  %s %s %s", f.Kind, f.Target, v.state(f.State))
		if f.Durable > 0 {
			s += fmt.Sprintf(" RPO %.1f s, %s behind", f.RPOSeconds, formatSize(f.LagBytes))
		}
	}
	if n := len(st.Alarms); n > 0 {
		s += v.bad(fmt.Sprintf("  %d alarm(s): %s", n, st.Alarms[0].Name))
	}
	return s
}
